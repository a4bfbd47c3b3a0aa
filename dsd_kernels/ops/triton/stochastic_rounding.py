"""Stochastic rounding in the kernels: reference.round_stochastically, to the bit."""

import triton
import triton.language as tl


@triton.jit
def lowbias32(x):
    """A hash of uint32 by Chris Wellons (https://nullprogram.com/blog/2018/07/31/)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def rounding_key(seed, tensor):
    """What the random bits of one tensor have in common; `tensor` is its place in the list."""
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    return lowbias32(lowbias32(low + tensor.to(tl.uint32) * 0x9E3779B9) ^ high)


@triton.jit
def encode_stochastically(value, random_bits, DTYPE: tl.constexpr):
    """The float32 value's upper neighbour with the probability of its distance to the lower one, as stored bits."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    noise = random_bits & 0xFFFF
    if DTYPE == tl.bfloat16:
        rounded = (magnitude + noise) >> 16
        quiet_nan = 0x7FC0
    else:
        exponent = (magnitude >> 23).to(tl.int32)
        steps_below_normal = tl.minimum(tl.maximum(113 - exponent, 0), 31).to(tl.uint32)
        fixed_point = (((magnitude & 0x7FFFFF) | 0x800000) << 3) >> steps_below_normal
        binade = tl.maximum(exponent - 113, 0).to(tl.uint32) << 10
        rounded = tl.minimum(binade + ((fixed_point + noise) >> 16), 0x7C00)
        quiet_nan = 0x7E00
    signed = rounded | ((bits >> 16) & 0x8000)
    return tl.where(value == value, signed, quiet_nan).to(tl.int16)
