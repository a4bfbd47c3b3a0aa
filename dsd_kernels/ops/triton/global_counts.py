"""How many of the k smallest magnitudes of all tensors together belong to each."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from dsd_kernels.ops.digits import counts_in_pool, find_digits
from dsd_kernels.ops.triton.magnitude_histogram import magnitude_histogram
from dsd_kernels.ops.triton.tables import launch_on


def global_counts(tensors: Sequence[Tensor], k: Tensor) -> Tensor:
    """One launch per digit counts it for each tensor; the digit of them all is found by a few operations on the counts.

    Passes: reads every weight once per 8 bits (see `radix_select`). Synchronisation: none.
    """
    key_bits = 8 * tensors[0].itemsize - 1
    with launch_on(tensors[0].device):
        wanted = k.reshape(1).clamp(0, sum(t.numel() for t in tensors))
        keys = find_digits(len(tensors), wanted, key_bits, partial(magnitude_histogram, tensors), pooled=True)
        return counts_in_pool(keys)
