"""Magnitude pruning: select, make and pack the masks, zero weights and momentum."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.formats import FORMATS, Format, chunk_pointers, load_keys, magnitude_key
from dsd_kernels.ops.triton.launch import launch
from dsd_kernels.ops.triton.mask_words import load_mask_pointer, pack_bits
from dsd_kernels.ops.triton.radix_select import Thresholds
from dsd_kernels.ops.triton.selection import chunk_size, select_keys
from dsd_kernels.ops.triton.tables import (
    NARROW_TILE,
    NUM_WARPS,
    AddressTable,
    address_table,
    is_aligned,
    launch_on,
    load_pointer,
    locate_chunk,
    tile_size,
)


def prune_(params: Sequence[Tensor], momentum_buffers: Sequence[Tensor], masks: Sequence[Tensor], k: Tensor) -> None:
    """The selection of all tensors (see `selection`), one launch to count ties, one to apply.

    Passes: reads every weight once, a few of them again; all once more of tensors of which only some of the weights at
    the threshold are pruned; then reads and writes every weight and momentum once, and writes the masks.
    Synchronisation: none.
    """
    if not params:
        return
    stored = FORMATS[params[0].dtype]
    with launch_on(params[0].device):
        table = address_table(chunk_size(stored), params, momentum_buffers, masks)
        if table.n_chunks == 0:
            return
        thresholds = select_keys(table, k, stored)
        ties_before = _count_ties_before(table, thresholds, stored)
        launch(
            apply_kernel,
            table.n_chunks,
            table.rows,
            table.chunks,
            *thresholds,
            ties_before,
            BITS=stored.bits,
            NAN_KEY=stored.nan_key,
            HAS_MOMENTUM=bool(momentum_buffers),
            CHUNK=chunk_size(stored),
            TILE=tile_size(stored.itemsize),
            num_warps=NUM_WARPS,
        )


def _count_ties_before(table: AddressTable, thresholds: Thresholds, stored: Format) -> Tensor:
    """How many ties the chunks before each chunk have, over all tensors; 0 where a tensor's ties are all pruned."""
    n_ties = torch.empty(table.n_chunks, dtype=torch.int64, device=table.rows.device)
    launch(
        count_ties_kernel,
        table.n_chunks,
        table.rows,
        table.chunks,
        *thresholds,
        n_ties,
        BITS=stored.bits,
        NAN_KEY=stored.nan_key,
        CHUNK=chunk_size(stored),
        TILE=tile_size(stored.itemsize),
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
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count one chunk's weights at the threshold; where all of the tensor's are pruned, they need no order: 0.

    Passes: reads the weights of tensors whose ties need an order once. Synchronisation: none.
    """
    tensor, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    found = tl.zeros([TILE], tl.int32)
    if tl.load(n_ties + tensor) != tl.load(n_pruned_ties + tensor):
        pointers = chunk_pointers(row, start, BITS)
        threshold = tl.load(keys + tensor)
        first = 0
        while first < count:
            key, exists = load_keys(pointers, first, count, BITS, NAN_KEY, TILE)
            found += exists & (key == threshold.to(key.dtype))
            first += TILE
    tl.store(n_chunk_ties + tl.program_id(0), tl.sum(found, 0))


@triton.jit
def apply_kernel(
    rows,
    chunks,
    keys,
    n_ties,
    n_pruned_ties,
    ties_before,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Make, pack and apply one chunk's mask.

    Passes: reads and writes every weight and momentum once, writes the masks. Synchronisation: none.
    """
    tensor, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    n_left = tl.load(n_pruned_ties + tensor)
    is_ordered = tl.load(n_ties + tensor) != n_left
    first_chunk = tl.program_id(0) - start // CHUNK
    n_left -= tl.load(ties_before + tl.program_id(0)) - tl.load(ties_before + first_chunk)
    threshold = tl.load(keys + tensor)
    aligned = _pointers(row, start, BITS, 16, 32)
    unaligned = _pointers(row, start, BITS, 1, 8)
    are_aligned = is_aligned(row)
    first = 0
    while first < count:
        if are_aligned & (first + TILE <= count):
            n_left -= _prune_tile(
                aligned, threshold, is_ordered, n_left, first, None, BITS, NAN_KEY, HAS_MOMENTUM, 32, TILE
            )
            first += TILE
        else:
            n_left -= _prune_tile(
                unaligned, threshold, is_ordered, n_left, first, count, BITS, NAN_KEY, HAS_MOMENTUM, 8, NARROW_TILE
            )
            first += NARROW_TILE


@triton.jit
def _pointers(row, start, BITS: tl.constexpr, ALIGNMENT: tl.constexpr, WORD: tl.constexpr):
    return (
        load_pointer(row, 1, BITS, ALIGNMENT) + start,
        load_pointer(row, 2, BITS, ALIGNMENT) + start,
        load_mask_pointer(row, 3, WORD) + start // WORD,
    )


@triton.jit
def _prune_tile(
    pointers,
    threshold,
    is_ordered,
    n_left,
    first,
    count,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    WORD: tl.constexpr,
    TILE: tl.constexpr,
):
    """Prune the weights up to the threshold, if they are ordered the first `n_left` at it; returns how many are at it.

    Where no order is needed, all of them are pruned, and 0 is returned.
    """
    param_ptr, buffer_ptr, mask_ptr = pointers
    word = first // WORD + tl.arange(0, TILE // WORD)
    weight = word[:, None] * WORD + tl.arange(0, WORD)[None, :]
    exists = None
    word_exists = None
    if count is not None:
        exists = weight < count
        word_exists = word * WORD < (count + 63) // 64 * 64
    param = tl.load(param_ptr + weight, mask=exists)
    key = magnitude_key(param, BITS, NAN_KEY)
    keep = key > threshold.to(key.dtype)
    n_ties = tl.full((), 0, tl.int32)
    if is_ordered:
        tie = key == threshold.to(key.dtype)
        if count is not None:
            tie &= exists
        ordinal = tl.cumsum(tie.to(tl.int32).reshape(TILE), 0).reshape(TILE // WORD, WORD)
        keep |= tie & (ordinal > n_left)
        n_ties = tl.max(tl.max(ordinal, 1), 0)
    if count is not None:
        keep &= exists
    tl.store(mask_ptr + word, pack_bits(keep), mask=word_exists)
    tl.store(param_ptr + weight, tl.where(keep, param, 0), mask=exists)
    if HAS_MOMENTUM:
        buffer = tl.load(buffer_ptr + weight, mask=exists)
        tl.store(buffer_ptr + weight, tl.where(keep, buffer, 0), mask=exists)
    return n_ties
