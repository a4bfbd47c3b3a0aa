"""How many weights of each tensor have each value of one digit of their magnitude keys."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS
from dsd_kernels.ops.triton.radix_select import N_BINS, count_digits
from dsd_kernels.ops.triton.selection import chunk_size
from dsd_kernels.ops.triton.tables import address_table, launch_on


def magnitude_histogram(tensors: Sequence[Tensor], prefixes: Tensor, shift: int) -> Tensor:
    """One launch for all tensors. Passes: reads every weight once. Synchronisation: none."""
    counts = torch.zeros(len(tensors), N_BINS.value, dtype=torch.int64, device=prefixes.device)
    if tensors:
        stored = FORMATS[tensors[0].dtype]
        with launch_on(prefixes.device):
            table = address_table(chunk_size(stored), tensors)
            count_digits(table, prefixes, counts, shift, stored, chunk_size(stored))
    return counts
