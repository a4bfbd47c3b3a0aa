"""Magnitude pruning: select, make and pack the masks, zero weights and momentum."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS, Format, magnitude_key
from dsd_kernels.ops.triton.mask_words import load_mask_pointer, pack_bits
from dsd_kernels.ops.triton.radix_select import CHUNK, Thresholds, select_keys
from dsd_kernels.ops.triton.tables import (
    NUM_WARPS,
    AddressTable,
    address_table,
    launch_on,
    load_pointer,
    locate_chunk,
    tile_size,
)


def prune_(params: Sequence[Tensor], momentum_buffers: Sequence[Tensor], masks: Sequence[Tensor], k: Tensor) -> None:
    """Two launches per digit for all tensors, one to count ties, one to apply.

    Passes: reads every weight once per 8 bits (see `radix_select`), once more where only some of the weights at a
    threshold are pruned; then reads and writes every weight and momentum once, and writes the masks.
    Synchronisation: none.
    """
    if not params:
        return
    stored = FORMATS[params[0].dtype]
    with launch_on(params[0].device):
        table = address_table(CHUNK, params, momentum_buffers, masks)
        if table.grid == (0,):
            return
        thresholds = select_keys(table, k, stored)
        ties_before = _count_ties_before(table, thresholds, stored)
        apply_kernel[table.grid](
            table.rows,
            table.chunks,
            thresholds.key,
            thresholds.n_pruned_ties,
            ties_before,
            BITS=stored.bits,
            NAN_KEY=stored.nan_key,
            HAS_MOMENTUM=bool(momentum_buffers),
            ALIGNMENT=table.alignment,
            WORD=table.word_bits,
            CHUNK=CHUNK,
            TILE=tile_size(params[0].itemsize),
            num_warps=NUM_WARPS,
        )


def _count_ties_before(table: AddressTable, thresholds: Thresholds, stored: Format) -> Tensor:
    """How many ties the chunks before each chunk have, over all tensors; 0 where a tensor's ties are all pruned."""
    n_ties = torch.empty(table.grid, dtype=torch.int64, device=table.rows.device)
    count_ties_kernel[table.grid](
        table.rows,
        table.chunks,
        *thresholds,
        n_ties,
        BITS=stored.bits,
        NAN_KEY=stored.nan_key,
        ALIGNMENT=table.alignment,
        CHUNK=CHUNK,
        TILE=tile_size(stored.bits.primitive_bitwidth // 8),
        num_warps=NUM_WARPS,
    )
    return n_ties.cumsum(0) - n_ties


@triton.jit
def count_ties_kernel(
    rows,
    chunks,
    keys,
    n_ties,
    n_pruned_ties,
    n_chunk_ties,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count one chunk's weights at the threshold; where all of the tensor's are pruned, they need no order: 0."""
    tensor, row, start, count = locate_chunk(rows, chunks, CHUNK)
    found = tl.zeros([TILE], tl.int32)
    if tl.load(n_ties + tensor) != tl.load(n_pruned_ties + tensor):
        weights = load_pointer(row, 1, BITS, ALIGNMENT) + start
        threshold = tl.load(keys + tensor)
        tile = 0
        while tile * TILE < count:
            first = tile * TILE
            offsets = first + tl.arange(0, TILE)
            # predicates would make the loads scalar
            if first + TILE <= count:
                bits = tl.load(weights + offsets)
            else:
                bits = tl.load(weights + offsets, mask=offsets < count)
            key = magnitude_key(bits, BITS, NAN_KEY)
            found += (offsets < count) & (key == threshold.to(key.dtype))
            tile += 1
    tl.store(n_chunk_ties + tl.program_id(0), tl.sum(found, 0))


@triton.jit
def apply_kernel(
    rows,
    chunks,
    keys,
    n_pruned_ties,
    ties_before,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    WORD: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Make, pack and apply one chunk's mask: every weight and momentum is read and written once."""
    tensor, row, start, count = locate_chunk(rows, chunks, CHUNK)
    threshold = tl.load(keys + tensor)
    first_chunk = tl.program_id(0) - start // CHUNK
    n_to_prune = tl.load(n_pruned_ties + tensor) - (
        tl.load(ties_before + tl.program_id(0)) - tl.load(ties_before + first_chunk)
    )
    pointers = (
        load_pointer(row, 1, BITS, ALIGNMENT) + start,
        load_pointer(row, 2, BITS, ALIGNMENT) + start,
        load_mask_pointer(row, 3, WORD, ALIGNMENT) + start // WORD,
    )
    tile = 0
    while tile * TILE < count:
        first = tile * TILE
        # predicates would make the loads and stores scalar
        if first + TILE <= count:
            n_to_prune -= _prune_tile(
                pointers, threshold, n_to_prune, first, None, BITS, NAN_KEY, HAS_MOMENTUM, WORD, TILE
            )
        else:
            n_to_prune -= _prune_tile(
                pointers, threshold, n_to_prune, first, count, BITS, NAN_KEY, HAS_MOMENTUM, WORD, TILE
            )
        tile += 1


@triton.jit
def _prune_tile(
    pointers,
    threshold,
    n_to_prune,
    first,
    count,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    WORD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Prune the weights below the threshold and the first `n_to_prune` at it; returns how many are at it."""
    param_ptr, buffer_ptr, mask_ptr = pointers
    weight = first + tl.arange(0, TILE)
    word = first // WORD + tl.arange(0, TILE // WORD)
    exists = None
    word_exists = None
    if count is not None:
        exists = weight < count
        word_exists = word * WORD < (count + 63) // 64 * 64
    param = tl.load(param_ptr + weight, mask=exists)
    key = magnitude_key(param, BITS, NAN_KEY)
    tie = key == threshold.to(key.dtype)
    keep = key > threshold.to(key.dtype)
    if count is not None:
        tie &= exists
        keep &= exists
    tie = tie.to(tl.int32)
    keep |= (tie != 0) & (tl.cumsum(tie, 0) > n_to_prune)
    tl.store(mask_ptr + word, pack_bits(keep, TILE, WORD), mask=word_exists)
    tl.store(param_ptr + weight, tl.where(keep, param, 0), mask=exists)
    if HAS_MOMENTUM:
        buffer = tl.load(buffer_ptr + weight, mask=exists)
        tl.store(buffer_ptr + weight, tl.where(keep, buffer, 0), mask=exists)
    return tl.sum(tie, 0)
