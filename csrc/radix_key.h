// Magnitude keys and their digits, for host and device: unsigned integers that order weights by |w|.
#pragma once

#include <cstdint>

#include "sgd_update.h"

namespace dsd {

// Of the digits that magnitude_histogram counts: DIGIT_BITS of reference.py, and the values that one has.
constexpr int kCountedBits = 8;
constexpr int kCountedValues = 1 << kCountedBits;

// The bits of a float type without its sign, -0 equal to +0; all NaNs are one key, above infinity.
template <typename bits_t>
struct RadixKey;

template <typename bits_t_, int key_bits_, bits_t_ infinity_>
struct RadixKeyOf {
  using bits_t = bits_t_;
  static constexpr int key_bits = key_bits_;
  static constexpr bits_t nan_key = infinity_ + 1;
  static constexpr bits_t magnitude_bits = static_cast<bits_t>(~bits_t(0)) >> 1;

  static DSD_INLINE bits_t key(bits_t bits) {
    const bits_t magnitude = bits & magnitude_bits;
    return magnitude < nan_key ? magnitude : nan_key;
  }
};

struct Float32Key : RadixKeyOf<uint32_t, 31, 0x7f800000u> {};
struct Float64Key : RadixKeyOf<uint64_t, 63, 0x7ff0000000000000ull> {};
struct BFloat16Key : RadixKeyOf<uint16_t, 15, 0x7f80u> {};
struct Float16Key : RadixKeyOf<uint16_t, 15, 0x7c00u> {};

}  // namespace dsd
