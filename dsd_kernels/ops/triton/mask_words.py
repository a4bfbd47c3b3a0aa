"""Packed masks as the kernels move them: words of 32 bits where a tensor is aligned, else bytes."""

import triton
import triton.language as tl

from dsd_kernels.ops.triton.tables import load_pointer


@triton.jit
def load_mask_pointer(row, COLUMN: tl.constexpr, WORD: tl.constexpr):
    if WORD == 32:
        pointer = load_pointer(row, COLUMN, tl.uint32, 16)
    else:
        pointer = load_pointer(row, COLUMN, tl.uint8, 1)
    return pointer


@triton.jit
def pack_bits(keep):
    """(n, bits) bools to (n,) words, the first weight in the lowest bit: little-endian, as the bytes are."""
    return tl.sum(keep.to(tl.uint32) << tl.arange(0, keep.shape[1])[None, :], 1)


@triton.jit
def unpack_bits(words, WORD: tl.constexpr):
    """(n, 1) words to (n, WORD) bools."""
    return ((words >> tl.arange(0, WORD)[None, :]) & 1) != 0
