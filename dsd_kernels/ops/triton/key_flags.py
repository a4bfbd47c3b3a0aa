"""The keys of a thread, and which of them are below a bound: a bit for each, so that one operation counts them all.

Keys are magnitudes whose NaNs have any keys from NAN_KEY on. A thread has them in words: one in each, or, of 16 bits
where no weight is missing, two as they are stored.
"""

import triton
import triton.language as tl

from dsd_kernels.ops.triton.formats import magnitude_bits

_SIGNS = tl.constexpr(0x80008000)


@triton.jit
def load_words(weights, n_left, BITS: tl.constexpr, PER_WORD: tl.constexpr, TILE: tl.constexpr, THREADS: tl.constexpr):
    """A tuple of (THREADS,) words, of all weights or of the `n_left` that there are; other keys are a NaN's."""
    if PER_WORD == 2:
        weights = weights.to(tl.pointer_type(tl.uint32))
    width: tl.constexpr = 128 // (BITS.primitive_bitwidth * PER_WORD)  # words in one access
    words = ()
    for run in tl.static_range(TILE // PER_WORD // (THREADS * width)):
        thread = run * THREADS + tl.arange(0, THREADS)
        index = thread[:, None] * width + tl.arange(0, width)[None, :]
        if n_left is None:
            bits = tl.load(weights + index)
        else:
            bits = tl.load(weights + index, mask=index < n_left, other=-1)
        if PER_WORD == 1:
            bits = magnitude_bits(bits, BITS)
        words = words + _columns(bits)
    return words


@triton.jit
def _columns(x):
    """(threads, n) as n vectors of (threads,); where a thread holds a row, nothing moves."""
    if x.shape[1] == 2:
        columns = tl.split(x)
    else:
        even, odd = tl.split(x.reshape(x.shape[0], x.shape[1] // 2, 2))
        columns = _columns(even) + _columns(odd)
    return columns


@triton.jit
def flags_below(words, bound, N_WORDS: tl.constexpr, PER_WORD: tl.constexpr):
    """Bit i tells whether key i is below a bound. Signs of differences: a comparison takes more instructions."""
    flags = tl.full(words[0].shape, 0, tl.uint32)
    if PER_WORD == 2:
        # with its sign bit set, a half less a bound keeps that bit unless it is below, and borrows from no other half
        tl.static_assert(N_WORDS == 16)
        bounds = bound.to(tl.uint32) * 0x10001
        for i in tl.static_range(N_WORDS):
            flags = (flags >> 1) | ((((words[i] | _SIGNS) - bounds) & _SIGNS) ^ _SIGNS)
    else:
        bound = bound.to(words[0].dtype)
        for i in tl.static_range(N_WORDS):
            word = words[N_WORDS - 1 - i]
            if word.dtype == tl.int64:
                is_below = (word < bound).to(tl.uint32)
            else:
                is_below = (word - bound).to(tl.uint32, bitcast=True) >> 31
            flags = (flags << 1) | is_below
    return flags


@triton.jit
def key_of_flag(words, i: tl.constexpr, PER_WORD: tl.constexpr):
    """Key i."""
    if PER_WORD == 1:
        key = words[i]
    elif i < 16:
        key = words[i] & 0x7FFF
    else:
        key = (words[i - 16] >> 16) & 0x7FFF
    return key


@triton.jit
def count_flags(flags):
    """How many bits are set. The compiler knows this way of writing it, which is one instruction."""
    flags -= (flags >> 1) & 0x55555555
    flags = (flags & 0x33333333) + ((flags >> 2) & 0x33333333)
    flags = (flags + (flags >> 4)) & 0x0F0F0F0F
    return ((flags * 0x01010101) >> 24).to(tl.int32)
