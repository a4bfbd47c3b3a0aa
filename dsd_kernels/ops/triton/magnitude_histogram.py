"""How many weights of each tensor have each value of one digit of their magnitude keys."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS
from dsd_kernels.ops.triton.radix_select import CHUNK, N_BINS, count_digits
from dsd_kernels.ops.triton.tables import address_table, launch_on


def magnitude_histogram(tensors: Sequence[Tensor], prefixes: Tensor, shift: int) -> Tensor:
    """One launch for all tensors. Passes: reads every weight once. Synchronisation: none."""
    counts = torch.zeros(len(tensors), N_BINS.value, dtype=torch.int64, device=prefixes.device)
    if tensors:
        with launch_on(prefixes.device):
            count_digits(address_table(CHUNK, tensors), prefixes, counts, shift, FORMATS[tensors[0].dtype])
    return counts
