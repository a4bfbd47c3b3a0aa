"""Packed masks as the kernels move them: words of as many bits as the alignment of all addresses allows."""

import triton
import triton.language as tl

from dsd_kernels.ops.triton.tables import load_pointer


@triton.jit
def load_mask_pointer(row, COLUMN: tl.constexpr, WORD: tl.constexpr, ALIGNMENT: tl.constexpr):
    if WORD == 32:
        pointer = load_pointer(row, COLUMN, tl.uint32, ALIGNMENT)
    elif WORD == 16:
        pointer = load_pointer(row, COLUMN, tl.uint16, ALIGNMENT)
    else:
        pointer = load_pointer(row, COLUMN, tl.uint8, ALIGNMENT)
    return pointer


@triton.jit
def pack_bits(keep, TILE: tl.constexpr, WORD: tl.constexpr):
    """(TILE,) bools to (TILE // WORD,) words, the first weight in the lowest bit: little-endian, as the bytes are."""
    bits = keep.to(tl.uint32).reshape(TILE // WORD, WORD)
    return tl.sum(bits << tl.arange(0, WORD)[None, :], 1)


@triton.jit
def unpack_bits(words, WORD: tl.constexpr):
    """(n, 1) words to (n, WORD) bools."""
    return ((words >> tl.arange(0, WORD)[None, :]) & 1) != 0
