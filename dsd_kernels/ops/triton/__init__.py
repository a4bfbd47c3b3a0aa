"""The ops as Triton kernels, each over all its tensors at once; `ops.backends` calls them by name."""

from dsd_kernels.ops.triton.global_counts import global_counts
from dsd_kernels.ops.triton.kth_magnitude import kth_magnitude
from dsd_kernels.ops.triton.magnitude_histogram import magnitude_histogram
from dsd_kernels.ops.triton.masked_sgd import masked_sgd_
from dsd_kernels.ops.triton.pack_mask import pack_mask
from dsd_kernels.ops.triton.planned_sgd import planned_sgd_
from dsd_kernels.ops.triton.prune import prune_
from dsd_kernels.ops.triton.unpack_mask import unpack_mask

__all__ = [
    "global_counts",
    "kth_magnitude",
    "magnitude_histogram",
    "masked_sgd_",
    "pack_mask",
    "planned_sgd_",
    "prune_",
    "unpack_mask",
]
