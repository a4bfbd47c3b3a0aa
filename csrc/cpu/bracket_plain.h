// The pass of bracket.h for any machine, in vectors of 16 bytes, which the compiler imitates where there are none.
#pragma once

#include <cstdint>
#include <cstring>

#include "bracket_scalar.h"
#include "chunks.h"
#include "keys.h"

namespace dsd::cpu {

template <typename Type>
struct BracketPlain {
  using bits_t = typename Type::bits_t;
  using magnitude_t = typename Limits<Type>::magnitude_t;
  using vector_t [[gnu::vector_size(16)]] = magnitude_t;
  static constexpr int kLanes = 16 / sizeof(bits_t);
  static constexpr int kGroup = 2 * kLanes;  // of so many, most often none lies inside
  static constexpr int64_t kBlock = 4096;    // what the first cache holds; its places fit 16 bits

  struct Counters {
    vector_t below, above_lo, above_hi;
  };

  // Which lanes lie inside.
  static DSD_INLINE vector_t vector(const bits_t* data, const Limits<Type>& limits, Counters& counters) {
    vector_t magnitudes;
    std::memcpy(&magnitudes, data, sizeof(magnitudes));
    magnitudes &= static_cast<magnitude_t>(Type::magnitude_bits);
    const vector_t above_lo = magnitudes > limits.lo_end;
    counters.below -= magnitudes < limits.lo;  // a lane that holds true is -1
    counters.above_lo -= above_lo;
    counters.above_hi -= magnitudes > limits.hi_end;
    return above_lo & (magnitudes < limits.hi);
  }

  static DSD_INLINE bool any(vector_t lanes) {
    uint64_t halves[2];
    std::memcpy(halves, &lanes, sizeof(halves));
    return (halves[0] | halves[1]) != 0;
  }

  static DSD_INLINE int64_t sum(vector_t lanes) {
    int64_t total = 0;
    for (int i = 0; i < kLanes; ++i) total += lanes[i];
    return total;
  }

  static DSD_INLINE bits_t* append(const bits_t* data, const Limits<Type>& limits, bits_t* end) {
    for (int j = 0; j < kGroup; ++j) {
      const bits_t magnitude = data[j] & Type::magnitude_bits;
      *end = magnitude;
      end += limits.is_inside(magnitude);
    }
    return end;
  }

  // n is a multiple of kGroup, and at most kBlock. Groups with a weight inside are noted, and visited afterwards: a
  // branch on each would be guessed wrong whenever one comes.
  static DSD_INLINE BracketCounts block(const bits_t* data, int64_t n, const Limits<Type>& limits, bits_t* inside,
                                        int64_t ahead_bytes) {
    uint16_t places[kBlock / kGroup + 1];
    int64_t n_places = 0;
    Counters counters{};
    for (int64_t i = 0; i < n; i += kGroup) {
      prefetch(data + i, ahead_bytes);
      const vector_t first = vector(data + i, limits, counters);
      places[n_places] = static_cast<uint16_t>(i);
      n_places += any(first | vector(data + i + kLanes, limits, counters));
    }
    bits_t* end = inside;
    for (int64_t i = 0; i < n_places; ++i) end = append(data + places[i], limits, end);
    return counts_of(n, sum(counters.below), sum(counters.above_lo), end - inside, sum(counters.above_hi));
  }

  static BracketCounts run(const bits_t* data, int64_t n, const Limits<Type>& limits, bits_t* inside,
                           int64_t ahead_bytes) {
    return split_in_blocks(data, n, kGroup, kBlock, limits, inside, [&](const bits_t* data, int64_t n, bits_t* inside) {
      return block(data, n, limits, inside, ahead_bytes);
    });
  }
};

}  // namespace dsd::cpu
