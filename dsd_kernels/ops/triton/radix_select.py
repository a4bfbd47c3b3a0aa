"""The k-th smallest magnitude key by radix digits, from the highest down: for any weights, at a read for each digit.

Counting a digit takes more than 80 instructions a weight, so this is the way only for tensors whose sample has misled
(see `selection`). The counts of a digit are also an op of their own, for selection over several ranks.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsd_kernels.ops.triton.bracket import MISSED, RANK_IN_ALL, RECORD, STATUS
from dsd_kernels.ops.triton.formats import Format, chunk_pointers, load_keys
from dsd_kernels.ops.triton.launch import launch
from dsd_kernels.ops.triton.tables import NUM_WARPS, AddressTable, locate_chunk

TILE = 2048
DIGIT_BITS = tl.constexpr(8)
N_BINS = tl.constexpr(256)
_MOST_PROGRAMS = 1024  # where nothing was missed, each costs the time to see that


class Thresholds(NamedTuple):
    """Per tensor: the k-th smallest key, how many weights have that key, and how many of these are among the k.

    Where k is 0 the key is -1, below all.
    """

    key: Tensor
    n_ties: Tensor
    n_pruned_ties: Tensor


def n_digits(stored: Format) -> int:
    return 8 * stored.itemsize // DIGIT_BITS.value


def select_missed(
    table: AddressTable,
    records: Tensor,
    any_missed: Tensor,
    thresholds: Thresholds,
    stored: Format,
    chunk: int,
    pooled: bool,
) -> None:
    """Set the thresholds of searches that are marked as missed; where there are none, the kernels return at once.

    Passes: reads every weight of these searches' tensors once a digit. Synchronisation: none.
    """
    counts = torch.zeros(len(records), n_digits(stored), N_BINS.value, dtype=torch.int64, device=records.device)
    for digit in range(n_digits(stored)):
        launch(
            count_missed_kernel,
            min(table.n_chunks, _MOST_PROGRAMS),
            table.rows,
            table.chunks,
            table.n_chunks,
            records,
            any_missed,
            counts,
            digit,
            int(not pooled),
            N_DIGITS=n_digits(stored),
            BITS=stored.bits,
            NAN_KEY=stored.nan_key,
            CHUNK=chunk,
            TILE=TILE,
            num_warps=NUM_WARPS,
        )
    launch(
        find_missed_kernel,
        len(records),
        records,
        counts,
        *thresholds,
        N_DIGITS=n_digits(stored),
        num_warps=NUM_WARPS,
    )


@triton.jit(do_not_specialize=["n_chunks", "digit", "searches_apart"])
def count_missed_kernel(
    rows,
    chunks,
    n_chunks,
    records,
    any_missed,
    counts,
    digit,
    searches_apart,
    N_DIGITS: tl.constexpr,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count one digit of the weights of missed searches whose higher digits are those of the k-th.

    `searches_apart` is 1 where each tensor has its own, 0 where all of them have one.
    Passes: reads the weights of missed searches once. Synchronisation: none; adds to the counts by atomics.
    """
    if tl.load(any_missed) == 0:
        return
    program = tl.program_id(0)
    while program < n_chunks:
        tensor, row, start, count = locate_chunk(rows, chunks, program, CHUNK)
        search = tensor * searches_apart
        record = records + search * RECORD
        if tl.load(record + STATUS) == MISSED:
            search_counts = counts + search * (N_DIGITS * N_BINS)
            prefix, _, _ = _follow_digits(search_counts, tl.load(record + RANK_IN_ALL), digit)
            shift = (N_DIGITS - 1 - digit) * DIGIT_BITS
            search_counts += digit * N_BINS
            _count_chunk(row, start, count, prefix, shift, search_counts, BITS, NAN_KEY, TILE)
        program += tl.num_programs(0)


@triton.jit
def find_missed_kernel(records, counts, keys, n_ties, n_pruned_ties, N_DIGITS: tl.constexpr):
    """Set a missed search's threshold from the counts of all digits.

    Passes: reads no weight. Synchronisation: none; one program a search.
    """
    search = tl.program_id(0)
    record = records + search * RECORD
    if tl.load(record + STATUS) == MISSED:
        rank = tl.load(record + RANK_IN_ALL)
        key, ties, rank = _follow_digits(counts + search * (N_DIGITS * N_BINS), rank, N_DIGITS)
        tl.store(keys + search, key)
        tl.store(n_ties + search, ties)
        tl.store(n_pruned_ties + search, rank)


@triton.jit
def _follow_digits(counts, rank, n_digits):
    """The first digits of the key of a rank, how many keys begin with them, and the rank among these."""
    bins = tl.arange(0, N_BINS)
    key = tl.full((), 0, tl.int64)
    n_ties = tl.full((), 0, tl.int64)
    place = 0
    while place < n_digits:
        n_per_digit = tl.load(counts + place * N_BINS + bins)
        digit = tl.sum((tl.cumsum(n_per_digit, 0) < rank).to(tl.int64), 0)
        n_ties = tl.sum(tl.where(bins == digit, n_per_digit, 0), 0)
        rank -= tl.sum(tl.where(bins < digit, n_per_digit, 0), 0)
        key = (key << DIGIT_BITS) | digit
        place += 1
    return key, n_ties, rank


def count_digits(table: AddressTable, keys: Tensor, counts: Tensor, shift: int, stored: Format, chunk: int) -> None:
    """Add to each tensor's counts the digit at `shift` of its weights whose higher digits are those of its key."""
    if table.n_chunks == 0:
        return
    launch(
        count_digits_kernel,
        table.n_chunks,
        table.rows,
        table.chunks,
        keys,
        counts,
        shift,
        BITS=stored.bits,
        NAN_KEY=stored.nan_key,
        CHUNK=chunk,
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
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count, over one chunk, the next digit of the weights whose higher digits are those of the threshold.

    Passes: reads every weight once. Synchronisation: none; adds to the counts by atomics.
    """
    tensor, row, start, count = locate_chunk(rows, chunks, tl.program_id(0), CHUNK)
    prefix = tl.load(keys + tensor)
    _count_chunk(row, start, count, prefix, shift, counts + tensor * N_BINS, BITS, NAN_KEY, TILE)


@triton.jit
def _count_chunk(
    row, start, count, prefix, shift, counts, BITS: tl.constexpr, NAN_KEY: tl.constexpr, TILE: tl.constexpr
):
    pointers = chunk_pointers(row, start, BITS)
    chunk_counts = tl.zeros([N_BINS], tl.int32)
    first = 0
    while first < count:
        keys, exists = load_keys(pointers, first, count, BITS, NAN_KEY, TILE)
        high_digits = keys >> shift
        candidate = exists & ((high_digits >> DIGIT_BITS) == prefix.to(high_digits.dtype))
        digit = (high_digits & (N_BINS - 1)).to(tl.int32)
        chunk_counts += tl.histogram(digit, N_BINS, mask=candidate)
        first += TILE
    bins = tl.arange(0, N_BINS)
    tl.atomic_add(counts + bins, chunk_counts.to(tl.int64), mask=chunk_counts > 0, sem="relaxed")
