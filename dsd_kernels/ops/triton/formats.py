"""How weights are stored: the bits of each dtype, its conversion to and from the dtype of the arithmetic, its keys."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dsd_kernels.ops.triton.tables import is_aligned, load_pointer


@dataclass(frozen=True)
class Format:
    """A dtype as the kernels see it. NaNs of all payloads share `nan_key`, the one above infinity."""

    dtype: tl.dtype
    compute: tl.dtype
    bits: tl.dtype
    nan_key: int

    @property
    def itemsize(self) -> int:
        return self.bits.primitive_bitwidth // 8

    @property
    def integer(self) -> torch.dtype:
        """Of the stored bits."""
        return {2: torch.int16, 4: torch.int32, 8: torch.int64}[self.itemsize]


FORMATS = {
    torch.float32: Format(tl.float32, tl.float32, tl.int32, 0x7F800001),
    torch.float64: Format(tl.float64, tl.float64, tl.int64, 0x7FF0000000000001),
    torch.bfloat16: Format(tl.bfloat16, tl.float32, tl.int16, 0x7F81),
    torch.float16: Format(tl.float16, tl.float32, tl.int16, 0x7C01),
}


@triton.jit
def load_weight_pointer(row, COLUMN: tl.constexpr, DTYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """The address of stored bits; where DTYPE is None there are none, and it is never followed."""
    if DTYPE == tl.float32:
        pointer = load_pointer(row, COLUMN, tl.int32, ALIGNMENT)
    elif DTYPE == tl.float64:
        pointer = load_pointer(row, COLUMN, tl.int64, ALIGNMENT)
    else:
        pointer = load_pointer(row, COLUMN, tl.int16, ALIGNMENT)
    return pointer


@triton.jit
def decode(bits, DTYPE: tl.constexpr):
    """The stored bits as float32, or float64 for float64: exact."""
    if DTYPE == tl.bfloat16:
        value = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == tl.float16:
        value = bits.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = bits.to(DTYPE, bitcast=True)
    return value


@triton.jit
def encode(value, DTYPE: tl.constexpr):
    """The bits to store, rounded once, to nearest even. A NaN stays a NaN; in the halves its payload is dropped."""
    if DTYPE == tl.bfloat16:
        # in integers, for Triton's interpreter truncates
        bits = value.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(value == value, rounded, 0x7FC0).to(tl.int16)
    elif DTYPE == tl.float16:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True)
    elif DTYPE == tl.float32:
        bits = value.to(tl.int32, bitcast=True)
    else:
        bits = value.to(tl.int64, bitcast=True)
    return bits


@triton.jit
def magnitude_key(bits, BITS: tl.constexpr, NAN_KEY: tl.constexpr):
    """An integer that orders weights by magnitude: the bits without the sign, one key for all NaNs."""
    return tl.minimum(magnitude_bits(bits, BITS), NAN_KEY)


@triton.jit
def magnitude_bits(bits, BITS: tl.constexpr):
    """As `magnitude_key`, but NaNs have any keys from NAN_KEY on."""
    if tl.int64 == BITS:
        magnitude = bits & 0x7FFFFFFFFFFFFFFF
    elif tl.int32 == BITS:
        magnitude = bits & 0x7FFFFFFF
    else:
        magnitude = bits.to(tl.int32) & 0x7FFF
    return magnitude


@triton.jit
def chunk_pointers(row, start, BITS: tl.constexpr):
    """Where a chunk of a table's first column begins: for wide accesses, for any, and whether the wide ones may be."""
    return load_pointer(row, 1, BITS, 16) + start, load_pointer(row, 1, BITS, 1) + start, is_aligned(row)


@triton.jit
def load_keys(pointers, first, count, BITS: tl.constexpr, NAN_KEY: tl.constexpr, TILE: tl.constexpr):
    """The keys of a chunk of `count` weights from weight `first` on, and which of them exist: others are anything."""
    aligned, weights, are_aligned = pointers
    offsets = first + tl.arange(0, TILE)
    exists = offsets < count
    # predicates would make the loads scalar
    if are_aligned & (first + TILE <= count):
        bits = tl.load(aligned + offsets)
    else:
        bits = tl.load(weights + offsets, mask=exists)
    return magnitude_key(bits, BITS, NAN_KEY), exists
