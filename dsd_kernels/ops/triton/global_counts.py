"""How many of the k smallest magnitudes of all tensors together belong to each."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.reference import counts_in_pool
from dsd_kernels.ops.triton.formats import FORMATS, chunk_pointers, load_keys
from dsd_kernels.ops.triton.launch import launch
from dsd_kernels.ops.triton.selection import chunk_size, select_pool_key
from dsd_kernels.ops.triton.tables import (
    NUM_WARPS,
    address_table,
    launch_on,
    locate_chunk,
    tile_size,
)


def global_counts(tensors: Sequence[Tensor], k: Tensor) -> Tensor:
    """The selection among all weights (see `selection`), and a launch to count each tensor's below the threshold.

    Passes: reads every weight once, about 3 % of them again, and all once more. Synchronisation: none. Memory: up to
    1/15 of the weights'.
    """
    stored = FORMATS[tensors[0].dtype]
    with launch_on(tensors[0].device):
        table = address_table(chunk_size(stored), tensors)
        below, equal = torch.zeros(2, len(tensors), dtype=torch.int64, device=k.device).unbind()
        if table.n_chunks == 0:
            return below
        threshold = select_pool_key(table, k.reshape(1), stored)
        launch(
            count_below_kernel,
            table.n_chunks,
            table.rows,
            table.chunks,
            threshold.key,
            below,
            equal,
            BITS=stored.bits,
            NAN_KEY=stored.nan_key,
            CHUNK=chunk_size(stored),
            TILE=tile_size(stored.itemsize),
            num_warps=NUM_WARPS,
        )
        return counts_in_pool(below, equal, threshold.n_pruned_ties)


@triton.jit
def count_below_kernel(
    rows,
    chunks,
    key,
    n_below,
    n_equal,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count one chunk's weights below the threshold of all tensors, and at it.

    Passes: reads every weight once. Synchronisation: none; adds to the tensor's counts by atomics.
    """
    tensor, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    pointers = chunk_pointers(row, start, BITS)
    threshold = tl.load(key)
    below = tl.zeros([TILE], tl.int32)
    equal = tl.zeros([TILE], tl.int32)
    first = 0
    while first < count:
        keys, exists = load_keys(pointers, first, count, BITS, NAN_KEY, TILE)
        below += exists & (keys < threshold.to(keys.dtype))
        equal += exists & (keys == threshold.to(keys.dtype))
        first += TILE
    # two counts of at most CHUNK < 2**15 in one sum
    both = tl.sum((equal << 16) + below, 0)
    tl.atomic_add(n_below + tensor, (both & 0xFFFF).to(tl.int64), sem="relaxed")
    tl.atomic_add(n_equal + tensor, (both >> 16).to(tl.int64), sem="relaxed")
