"""The exact k-th smallest magnitude of each tensor."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS, decode
from dsd_kernels.ops.triton.selection import chunk_size, select_keys
from dsd_kernels.ops.triton.tables import address_table, launch_on


def kth_magnitude(tensors: Sequence[Tensor], k: Tensor) -> Tensor:
    """The selection of all tensors (see `selection`), and a launch to turn keys into values.

    Passes: reads every weight once, a few of them again. Synchronisation: none.
    """
    if not tensors:
        return torch.empty(0, dtype=torch.float32, device=k.device)
    stored = FORMATS[tensors[0].dtype]
    is_double = tensors[0].dtype == torch.float64
    out = torch.empty(len(tensors), dtype=torch.float64 if is_double else torch.float32, device=tensors[0].device)
    with launch_on(tensors[0].device):
        thresholds = select_keys(address_table(chunk_size(stored), tensors), k, stored)
        magnitude_kernel[(len(tensors),)](
            thresholds.key,
            thresholds.n_pruned_ties,
            out,
            DTYPE=stored.dtype,
            BITS=stored.bits,
            NAN_KEY=stored.nan_key,
            num_warps=1,
        )
    return out


@triton.jit
def magnitude_kernel(keys, n_pruned_ties, out, DTYPE: tl.constexpr, BITS: tl.constexpr, NAN_KEY: tl.constexpr):
    """The value of one tensor's key; -inf where k is 0, for then no tie is among the k smallest.

    Passes: reads no weight. Synchronisation: none; one program a tensor.
    """
    tensor = tl.program_id(0)
    key = tl.load(keys + tensor)
    magnitude = decode(key.to(BITS), DTYPE)
    magnitude = tl.where(key == NAN_KEY, float("nan"), magnitude)
    tl.store(out + tensor, tl.where(tl.load(n_pruned_ties + tensor) == 0, float("-inf"), magnitude))
