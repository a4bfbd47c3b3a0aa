// Stochastic rounding of float32 to the half-precision dtypes, for host and device: reference.round_stochastically.
#pragma once

#include <cstdint>
#include <cstring>

#include "sgd_update.h"

namespace dsd {

// A hash of 32-bit integers by Chris Wellons (https://nullprogram.com/blog/2018/07/31/).
DSD_INLINE uint32_t lowbias32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// What the random bits of one tensor have in common; `ordinal` is its place in the list.
DSD_INLINE uint32_t rounding_key(uint64_t seed, uint32_t ordinal) {
  return lowbias32(lowbias32(static_cast<uint32_t>(seed) + ordinal * 0x9e3779b9u) ^ static_cast<uint32_t>(seed >> 32));
}

// The 16 random bits of a weight, numbered in memory order.
DSD_INLINE uint32_t rounding_noise(uint32_t key, uint32_t weight) { return lowbias32(weight ^ key) & 0xffff; }

struct FloatBits {
  uint32_t sign;  // in the sign bit of a half
  uint32_t magnitude;
  bool is_nan;

  explicit DSD_INLINE FloatBits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    sign = (bits >> 16) & 0x8000;
    magnitude = bits & 0x7fffffff;
    is_nan = magnitude > 0x7f800000;
  }
};

DSD_INLINE uint16_t round_to_bfloat16_stochastically(float value, uint32_t noise) {
  const FloatBits bits(value);
  const uint32_t rounded = bits.sign | ((bits.magnitude + noise) >> 16);
  return static_cast<uint16_t>(bits.is_nan ? 0x7fc0 : rounded);
}

// The magnitude counts float16 values in 16 binary places; only a denormal has more, and these are truncated.
DSD_INLINE uint16_t round_to_float16_stochastically(float value, uint32_t noise) {
  const FloatBits bits(value);
  const int32_t exponent = static_cast<int32_t>(bits.magnitude >> 23);
  const int32_t steps_below_normal = exponent > 113 ? 0 : exponent < 82 ? 31 : 113 - exponent;
  const uint32_t fixed_point = (((bits.magnitude & 0x7fffff) | 0x800000) << 3) >> steps_below_normal;
  const uint32_t binade = static_cast<uint32_t>(exponent > 113 ? exponent - 113 : 0) << 10;
  const uint32_t rounded = binade + ((fixed_point + noise) >> 16);
  const uint32_t infinity = 0x7c00;
  return static_cast<uint16_t>(bits.is_nan ? 0x7e00 : bits.sign | (rounded < infinity ? rounded : infinity));
}

}  // namespace dsd
