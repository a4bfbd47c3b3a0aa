"""Two keys of a sample between which the k-th of all lies, and one read that counts and collects what lies there.

A split does not fold NaNs: they have any keys from NAN_KEY on. Where that is a bound, what the counts lack is at it.

`narrow_kernel` and `split_kernel` take turns: narrowing looks at what the last split has counted, and brackets what it
has collected; once a sample holds all of that, the k-th is found. The counts decide, so a sample that misleads costs
time alone: the tensor is marked as missed, and `radix_select` finds its threshold.
"""

import triton
import triton.language as tl

from dsd_kernels.ops.triton.formats import magnitude_key
from dsd_kernels.ops.triton.key_flags import count_flags, flags_below, key_of_flag, load_words
from dsd_kernels.ops.triton.stochastic_rounding import lowbias32
from dsd_kernels.ops.triton.tables import ROW, START, is_aligned, load_pointer

# one record of int64 per search: what is sought, the bracket, and what the split has counted
STATUS, RANK_IN_ALL, N, RANK_LEFT, LO, HI, BELOW, AT_LO, INSIDE, AT_HI = (tl.constexpr(i) for i in range(10))
RECORD = tl.constexpr(16)
SEARCHING, FOUND, MISSED = (tl.constexpr(i) for i in range(3))
DEVIATIONS = tl.constexpr(4)  # of the rank that a sample estimates: a miss costs a radix selection


@triton.jit(do_not_specialize=["n_pool"])
def gather_kernel(rows, sample, n_pool, BITS: tl.constexpr, SAMPLE: tl.constexpr, TILE: tl.constexpr):
    """One tensor's share of a sample of all tensors together, or of all `n_pool` weights that there are.

    Passes: reads at most SAMPLE weights. Synchronisation: none; one program a tensor.
    """
    row = rows + tl.program_id(0) * ROW
    weights = load_pointer(row, 1, BITS, 1)
    n = tl.load(row)
    start = tl.load(row + START)
    n_pool = tl.full((), n_pool, tl.int64)
    for first in range(0, SAMPLE, TILE):
        index = first + tl.arange(0, TILE)
        place = index.to(tl.int64)
        if n_pool > SAMPLE:
            place = _sampled_places(index, n_pool, SAMPLE)
        place -= start
        is_here = (place >= 0) & (place < n)
        tl.store(sample + index, tl.load(weights + place, mask=is_here), mask=is_here)


@triton.jit(do_not_specialize=["n_pool"])
def narrow_kernel(
    rows,
    source,
    n_pool,
    records,
    any_missed,
    keys,
    n_ties,
    n_pruned_ties,
    k,
    BITS: tl.constexpr,
    NAN_KEY: tl.constexpr,
    SAMPLE: tl.constexpr,
):
    """One tensor's k-th key if a sample holds all that is left, else a bracket for the next split.

    `source` is None at first: then all weights are left, else what was collected there; with `n_pool`, it is the sample
    of as many weights that `gather_kernel` takes, and the tensor is all of them together.
    Passes: reads at most SAMPLE weights. Synchronisation: none; one program a tensor.
    """
    tensor = tl.program_id(0)
    row = rows + tensor * ROW
    record = records + tensor * RECORD
    outputs = (keys + tensor, n_ties + tensor, n_pruned_ties + tensor)
    is_sampled: tl.constexpr = n_pool is not None
    if source is None or is_sampled:
        tl.store(any_missed, 0)
        if is_sampled:
            weights = source
            n = tl.full((), n_pool, tl.int64)
        else:
            weights = load_pointer(row, 1, BITS, 1)
            n = tl.load(row)
        rank = tl.minimum(tl.maximum(tl.load(k + tensor), 0), n)
        tl.store(record + RANK_IN_ALL, rank)
        if rank == 0:
            _found(record, outputs, -1, 0, 0)
            return
    else:
        if tl.load(record + STATUS) != SEARCHING:
            return
        weights = source + tl.load(row + 1)
        n = tl.load(record + INSIDE)
        n_all, n_below = tl.load(record + N), tl.load(record + BELOW)
        lo, hi = tl.load(record + LO), tl.load(record + HI)
        n_at_lo = tl.where(lo < NAN_KEY, tl.load(record + AT_LO), n_all - n_below)
        n_at_hi = tl.where(hi < NAN_KEY, tl.load(record + AT_HI), n_all - n_below - n_at_lo - n)
        rank = tl.load(record + RANK_LEFT) - n_below
        rank_at_hi = rank - n_at_lo - n
        if (rank > 0) & (rank <= n_at_lo):
            _found(record, outputs, lo, n_at_lo, rank)
            return
        if (rank_at_hi > 0) & (rank_at_hi <= n_at_hi):
            _found(record, outputs, hi, n_at_hi, rank_at_hi)
            return
        if (rank <= 0) | (rank_at_hi > 0) | (n > tl.load(row)):
            tl.store(record + STATUS, MISSED)
            tl.store(any_missed, 1)
            return
        rank -= n_at_lo
    if n <= SAMPLE:
        _rank_all(weights, n, rank, record, outputs, BITS, NAN_KEY, SAMPLE)
    else:
        index = tl.arange(0, SAMPLE)
        places = index if is_sampled else _sampled_places(index, n, SAMPLE)
        _bracket(weights + places, n, rank, record, BITS, NAN_KEY, SAMPLE)


@triton.jit
def _found(record, outputs, key, n_ties, n_pruned_ties):
    tl.store(record + STATUS, FOUND)
    tl.store(outputs[0], key)
    tl.store(outputs[1], n_ties)
    tl.store(outputs[2], n_pruned_ties)


@triton.jit
def _rank_all(weights, n, rank, record, outputs, BITS: tl.constexpr, NAN_KEY: tl.constexpr, SAMPLE: tl.constexpr):
    """The key of a rank among n weights, at most SAMPLE."""
    index = tl.arange(0, SAMPLE)
    exists = index < n
    key = tl.where(exists, magnitude_key(tl.load(weights + index, mask=exists), BITS, NAN_KEY), NAN_KEY + 1)
    found, _ = _keys_of_ranks(key, rank, rank, BITS)
    n_below = tl.sum((key < found).to(tl.int32), 0)
    n_equal = tl.sum((key == found).to(tl.int32), 0)
    _found(record, outputs, found.to(tl.int64), n_equal.to(tl.int64), rank - n_below)


@triton.jit
def _bracket(sample, n, rank, record, BITS: tl.constexpr, NAN_KEY: tl.constexpr, SAMPLE: tl.constexpr):
    """Two keys of a sample that should have the key of a rank among n weights between them."""
    key = magnitude_key(tl.load(sample), BITS, NAN_KEY)
    share = rank.to(tl.float32) / n.to(tl.float32)
    variance = share * tl.maximum(1 - share, 0.0) * SAMPLE  # a quotient may be rounded up, above 1
    margin = 2 + (tl.sqrt(variance) * DEVIATIONS).to(tl.int32)
    middle = rank * SAMPLE // n
    lo, hi = _keys_of_ranks(key, middle - margin, middle + margin, BITS)
    lo = tl.where(middle < margin + 1, 0, lo.to(tl.int64))
    hi = tl.where(middle + margin > SAMPLE, NAN_KEY, hi.to(tl.int64))
    tl.store(record + STATUS, SEARCHING)
    tl.store(record + N, n)
    tl.store(record + RANK_LEFT, rank)
    tl.store(record + LO, lo)
    tl.store(record + HI, hi)
    for count in tl.static_range(BELOW, AT_HI + 1):
        tl.store(record + count, 0)


@triton.jit
def _sampled_places(index, n, SAMPLE: tl.constexpr):
    """One place from each of SAMPLE strata, at random there, so that no period in the weights can meet the sample's."""
    width = (n // SAMPLE).to(tl.uint64)
    within = lowbias32(index.to(tl.uint32)).to(tl.uint64) * width >> 32
    return index * n // SAMPLE + within.to(tl.int64)


@triton.jit
def _keys_of_ranks(keys, lo_rank, hi_rank, BITS: tl.constexpr):
    """For each rank the largest key that fewer keys than it are below, bit by bit; both counts in one sum."""
    lo = tl.full((), 0, keys.dtype)
    hi = tl.full((), 0, keys.dtype)
    bit = tl.full((), 1, keys.dtype) << (BITS.primitive_bitwidth - 2)
    while bit > 0:
        below = tl.sum((keys < (lo | bit)).to(tl.int32) + ((keys < (hi | bit)).to(tl.int32) << 16), 0)
        lo = tl.where((below & 0xFFFF) < lo_rank, lo | bit, lo)
        hi = tl.where((below >> 16) < hi_rank, hi | bit, hi)
        bit >>= 1
    return lo, hi


@triton.jit(do_not_specialize=["searches_apart"])
def split_kernel(
    rows,
    chunks,
    source,
    records,
    collected_rows,
    collected,
    searches_apart,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Count one chunk's keys below, at and inside its bracket, and collect those inside.

    `searches_apart` is 1 where each tensor has a bracket, 0 where all of them have one.

    Passes: reads every weight that is left once, writes about 3 % of them. Synchronisation: none; programs add to
    their tensor's counts by atomics. What is collected has no order, and nothing depends on it.
    """
    program = tl.program_id(0)
    tensor = tl.load(chunks + 2 * program)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * TILE
    search = tensor * searches_apart
    record = records + search * RECORD
    if tl.load(record + STATUS) != SEARCHING:
        return
    row = rows + tensor * ROW
    n_left = (tl.load(row) if source is None else tl.load(record + N)) - start
    if n_left <= 0:
        return
    collected_row = collected_rows + search * ROW
    destination = (collected + tl.load(collected_row + 1), tl.load(collected_row))
    if (n_left >= TILE) & is_aligned(row):
        if source is None:
            weights = load_pointer(row, 1, BITS, 16) + start
        else:
            weights = source + tl.multiple_of(tl.load(row + 1), 16) + start
        _split_tile(weights, None, record, destination, BITS, TILE, THREADS)
    else:
        if source is None:
            weights = load_pointer(row, 1, BITS, 1) + start
        else:
            weights = source + tl.load(row + 1) + start
        narrow_tile: tl.constexpr = THREADS * 128 // BITS.primitive_bitwidth
        first = 0
        while first < tl.minimum(n_left, TILE):
            _split_tile(weights + first, n_left - first, record, destination, BITS, narrow_tile, THREADS)
            first += narrow_tile


@triton.jit
def _split_tile(
    weights,
    n_left,
    record,
    destination,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
    THREADS: tl.constexpr,
):
    """A thread's keys stay in it, as one vector over the threads for each: only its counts meet those of others."""
    is_packed: tl.constexpr = BITS.primitive_bitwidth == 16 and n_left is None
    per_word: tl.constexpr = 2 if is_packed else 1
    n_words: tl.constexpr = TILE // THREADS // per_word
    words = load_words(weights, n_left, BITS, per_word, TILE, THREADS)
    lo, hi = tl.load(record + LO), tl.load(record + HI)
    below = flags_below(words, lo, n_words, per_word)
    up_to_lo = flags_below(words, lo + 1, n_words, per_word)
    below_hi = flags_below(words, hi, n_words, per_word)
    up_to_hi = flags_below(words, hi + 1, n_words, per_word)
    inside = below_hi & (below_hi ^ up_to_lo)
    at_hi = (up_to_hi ^ below_hi) & (up_to_hi ^ up_to_lo)  # none where both bounds are the same
    # two counts of at most TILE < 2**15 in one sum
    n_inside = count_flags(inside)
    at_lo_and_below = tl.sum((count_flags(up_to_lo ^ below) << 16) + count_flags(below), 0)
    at_hi_and_inside = tl.sum((count_flags(at_hi) << 16) + n_inside, 0)
    n_collected = at_hi_and_inside & 0xFFFF
    _add(record + BELOW, at_lo_and_below & 0xFFFF)
    _add(record + AT_LO, at_lo_and_below >> 16)
    _add(record + AT_HI, at_hi_and_inside >> 16)
    if n_collected > 0:
        collected, capacity = destination
        first = tl.atomic_add(record + INSIDE, n_collected.to(tl.int64), sem="relaxed")
        if first + n_collected <= capacity:  # more than it holds is a miss
            places = collected + first + (tl.cumsum(n_inside, 0) - n_inside)
            for i in tl.static_range(TILE // THREADS):
                n = ((inside >> i) & 1).to(tl.int32)
                tl.store(places, key_of_flag(words, i, per_word).to(BITS), mask=n != 0)
                places += n


@triton.jit
def _add(counter, count):
    """Most counts at a bound are 0, and a counter is shared by many programs."""
    tl.atomic_add(counter, count.to(tl.int64), mask=count > 0, sem="relaxed")
