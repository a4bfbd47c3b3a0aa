"""The k-th smallest magnitude key of each tensor, by radix digits from the highest down; shared by the ops that select.

Per digit one launch counts the digits of all tensors' candidates, and one picks each tensor's digit. Everything stays
on the device, in shapes that depend on the tensors' sizes only.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.formats import Format, magnitude_key
from dsd_kernels.ops.triton.tables import NUM_WARPS, AddressTable, load_pointer, locate_chunk

CHUNK = 16384
TILE = 4096
DIGIT_BITS = tl.constexpr(8)
N_BINS = tl.constexpr(256)


class Thresholds(NamedTuple):
    """Per tensor: the k-th smallest key, how many weights have that key, and how many of these are among the k."""

    key: Tensor
    n_ties: Tensor
    n_pruned_ties: Tensor


def select_keys(table: AddressTable, k: Tensor, stored: Format) -> Thresholds:
    """Thresholds of the tensors in a table's first column; k is clamped to [0, n].

    Passes: reads every weight once per 8 bits: 4 times for float32, 8 for float64, 2 for the halves.
    Synchronisation: none.
    """
    n_tensors = len(k)
    counts = torch.zeros(n_tensors, N_BINS.value, dtype=torch.int64, device=k.device)
    thresholds = Thresholds(torch.zeros_like(k), torch.zeros_like(k), k.clamp(min=0).minimum(table.rows[:, 0]))
    for shift in range(stored.bits.primitive_bitwidth - DIGIT_BITS.value, -1, -DIGIT_BITS.value):
        count_digits(table, thresholds.key, counts, shift, stored)
        pick_digit_kernel[(n_tensors,)](*thresholds, counts, num_warps=1)
    return thresholds


def count_digits(table: AddressTable, keys: Tensor, counts: Tensor, shift: int, stored: Format) -> None:
    """Add to each tensor's counts the digit at `shift` of its weights whose higher digits are those of its key."""
    if table.grid == (0,):
        return
    count_digits_kernel[table.grid](
        table.rows,
        table.chunks,
        keys,
        counts,
        shift,
        BITS=stored.bits,
        NAN_KEY=stored.nan_key,
        ALIGNMENT=table.alignment,
        CHUNK=CHUNK,
        TILE=TILE,
        num_warps=NUM_WARPS,
    )


@triton.jit(do_not_specialize=["shift"])
def count_digits_kernel(
    rows,
    chunks,
    keys,
    counts,
    shift,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count, over one chunk, the next digit of the weights whose higher digits are those of the threshold."""
    tensor, row, start, count = locate_chunk(rows, chunks, CHUNK)
    weights = load_pointer(row, 1, BITS, ALIGNMENT) + start
    prefix = tl.load(keys + tensor)
    chunk_counts = tl.zeros([N_BINS], tl.int32)
    tile = 0
    while tile * TILE < count:
        first = tile * TILE
        offsets = first + tl.arange(0, TILE)
        exists = offsets < count
        # predicates would make the loads scalar
        if first + TILE <= count:
            bits = tl.load(weights + offsets)
        else:
            bits = tl.load(weights + offsets, mask=exists)
        high_digits = magnitude_key(bits, BITS, NAN_KEY) >> shift
        candidate = exists & ((high_digits >> DIGIT_BITS) == prefix.to(high_digits.dtype))
        digit = (high_digits & (N_BINS - 1)).to(tl.int32)
        chunk_counts += tl.histogram(digit, N_BINS, mask=candidate)
        tile += 1
    bins = tl.arange(0, N_BINS)
    tl.atomic_add(counts + tensor * N_BINS + bins, chunk_counts.to(tl.int64), mask=chunk_counts > 0, sem="relaxed")


@triton.jit
def pick_digit_kernel(keys, n_ties, n_pruned_ties, counts):
    """Append to one tensor's threshold the digit that its k-th weight has, and clear the counts for the next."""
    tensor = tl.program_id(0)
    bins = tl.arange(0, N_BINS)
    n_per_digit = tl.load(counts + tensor * N_BINS + bins)
    tl.store(counts + tensor * N_BINS + bins, tl.zeros([N_BINS], tl.int64))
    remaining = tl.load(n_pruned_ties + tensor)
    digit = tl.sum((tl.cumsum(n_per_digit, 0) < remaining).to(tl.int64), 0)
    tl.store(keys + tensor, (tl.load(keys + tensor) << DIGIT_BITS) | digit)
    tl.store(n_ties + tensor, tl.sum(tl.where(bins == digit, n_per_digit, 0), 0))
    tl.store(n_pruned_ties + tensor, remaining - tl.sum(tl.where(bins < digit, n_per_digit, 0), 0))
