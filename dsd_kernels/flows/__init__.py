"""Training flows: each a short schedule of masks over one optimizer and one model."""

from dsd_kernels.flows.base import Flow
from dsd_kernels.flows.dsd import DSD

__all__ = ["DSD", "Flow"]
