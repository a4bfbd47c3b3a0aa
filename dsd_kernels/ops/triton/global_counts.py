"""How many of the k smallest magnitudes of all tensors together belong to each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS
from dsd_kernels.ops.triton.radix_select import DIGIT_BITS, N_BINS, count_digits
from dsd_kernels.ops.triton.selection import chunk_size
from dsd_kernels.ops.triton.tables import address_table, launch_on


def global_counts(tensors: Sequence[Tensor], k: Tensor) -> Tensor:
    """One launch per digit counts it for each tensor; the digit of them all is found by a few operations on the counts.

    Passes: reads every weight once per 8 bits (see `radix_select`). Synchronisation: none.
    """
    n_tensors, device = len(tensors), tensors[0].device
    stored = FORMATS[tensors[0].dtype]
    with launch_on(device):
        table = address_table(chunk_size(stored), tensors)
        remaining = k.reshape(()).clamp(0, sum(t.numel() for t in tensors))
        keys, below, equal = torch.zeros(3, n_tensors, dtype=torch.int64, device=device).unbind()
        for shift in range(stored.bits.primitive_bitwidth - DIGIT_BITS.value, -1, -DIGIT_BITS.value):
            counts = torch.zeros(n_tensors, N_BINS.value, dtype=torch.int64, device=device)
            count_digits(table, keys, counts, shift, stored, chunk_size(stored))
            before = counts.cumsum(1) - counts
            digit = (counts.sum(0).cumsum(0) < remaining).sum().expand(n_tensors, 1)
            below += before.gather(1, digit)[:, 0]
            remaining = remaining - before.gather(1, digit).sum()
            equal = counts.gather(1, digit)[:, 0]
            keys = (keys << DIGIT_BITS.value) | digit[:, 0]
    ties_before = equal.cumsum(0) - equal
    return below + (remaining - ties_before).clamp(min=0).minimum(equal)
