"""Masked (sparse) training for PyTorch: a drop-in SGD whose step keeps a mask, exact pruning, and DSD on top."""

from dsd_kernels import flows, masks
from dsd_kernels.ops import kth_magnitude, masked_sgd_, pack_mask, prune_, unpack_mask
from dsd_kernels.ops.backends import backends, use_backend
from dsd_kernels.optim import MaskedSGD
from dsd_kernels.version import __version__

__all__ = [
    "MaskedSGD",
    "__version__",
    "backends",
    "flows",
    "kth_magnitude",
    "masked_sgd_",
    "masks",
    "pack_mask",
    "prune_",
    "unpack_mask",
    "use_backend",
]
