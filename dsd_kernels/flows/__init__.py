"""Training flows: each a short schedule of masks over one optimizer and one model."""

from dsd_kernels.flows.acdc import ACDC
from dsd_kernels.flows.base import Flow
from dsd_kernels.flows.controls import LLR, Dense
from dsd_kernels.flows.dsd import DSD
from dsd_kernels.flows.gap import GaP
from dsd_kernels.flows.gradual import Gradual
from dsd_kernels.flows.iht import IHT
from dsd_kernels.flows.parallel_gap import ParallelGaP
from dsd_kernels.flows.prune_once import PruneOnce

__all__ = ["ACDC", "DSD", "IHT", "LLR", "Dense", "Flow", "GaP", "Gradual", "ParallelGaP", "PruneOnce"]
