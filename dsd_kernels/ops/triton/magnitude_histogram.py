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
        chunk = chunk_size(stored)
        with launch_on(prefixes.device):
            count_digits(address_table(chunk, tensors), prefixes, counts, shift, stored, chunk)
    return counts
