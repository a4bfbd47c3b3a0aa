// The pass of bracket.h with AVX2: what lies inside is moved to the front of its vector by a table, and stored without
// a branch.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "bracket_scalar.h"
#include "chunks.h"
#include "isa.h"
#include "keys.h"

#if defined(DSD_HAS_X86_TARGETS)
#include <immintrin.h>

namespace dsd::cpu {

#define DSD_AVX2_INLINE DSD_TARGET_AVX2 __attribute__((always_inline)) static inline

// For a mask of eight lanes of 32 bits, the places of those that are set.
using LanePlaces = std::array<std::array<uint32_t, 8>, 256>;

constexpr LanePlaces make_lane_places() {
  LanePlaces places{};
  for (uint32_t mask = 0; mask < 256; ++mask)
    for (uint32_t lane = 0, n = 0; lane < 8; ++lane)
      if (mask >> lane & 1) places[mask][n++] = lane;
  return places;
}

alignas(64) inline constexpr LanePlaces kLanePlaces = make_lane_places();

// What the pass needs of a vector of magnitudes of one width.
template <typename bits_t>
struct Lanes256;

struct WideLanes256 {
  // The lanes of 32 bits that a mask has set, at the front.
  DSD_AVX2_INLINE __m256i compress(int mask, __m256i lanes) {
    const auto* places = reinterpret_cast<const __m256i*>(kLanePlaces[static_cast<size_t>(mask)].data());
    return _mm256_permutevar8x32_epi32(lanes, _mm256_load_si256(places));
  }
  DSD_AVX2_INLINE int mask_of(__m256i lanes) { return _mm256_movemask_ps(_mm256_castsi256_ps(lanes)); }

  // Behind the last one stored; a lane of 64 bits is two of the mask's.
  template <typename bits_t>
  DSD_AVX2_INLINE bits_t* append(bits_t* end, __m256i which, __m256i lanes) {
    const int mask = mask_of(which);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(end), compress(mask, lanes));
    return end + std::popcount(static_cast<unsigned>(mask)) * sizeof(uint32_t) / sizeof(bits_t);
  }
};

template <>
struct Lanes256<uint32_t> : WideLanes256 {
  DSD_AVX2_INLINE __m256i all(int32_t x) { return _mm256_set1_epi32(x); }
  DSD_AVX2_INLINE __m256i greater(__m256i a, __m256i b) { return _mm256_cmpgt_epi32(a, b); }
  DSD_AVX2_INLINE __m256i minus(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
};

template <>
struct Lanes256<uint64_t> : WideLanes256 {
  DSD_AVX2_INLINE __m256i all(int64_t x) { return _mm256_set1_epi64x(x); }
  DSD_AVX2_INLINE __m256i greater(__m256i a, __m256i b) { return _mm256_cmpgt_epi64(a, b); }
  DSD_AVX2_INLINE __m256i minus(__m256i a, __m256i b) { return _mm256_sub_epi64(a, b); }
};

template <>
struct Lanes256<uint16_t> {
  DSD_AVX2_INLINE __m256i all(int16_t x) { return _mm256_set1_epi16(x); }
  DSD_AVX2_INLINE __m256i greater(__m256i a, __m256i b) { return _mm256_cmpgt_epi16(a, b); }
  DSD_AVX2_INLINE __m256i minus(__m256i a, __m256i b) { return _mm256_sub_epi16(a, b); }

  DSD_AVX2_INLINE uint16_t* append(uint16_t* end, __m256i which, __m256i lanes) {
    end = append_half(end, _mm256_castsi256_si128(which), _mm256_castsi256_si128(lanes));
    return append_half(end, _mm256_extracti128_si256(which, 1), _mm256_extracti128_si256(lanes, 1));
  }
  DSD_AVX2_INLINE uint16_t* append_half(uint16_t* end, __m128i which, __m128i lanes) {
    const int mask = WideLanes256::mask_of(_mm256_cvtepi16_epi32(which));
    const __m256i first = WideLanes256::compress(mask, _mm256_cvtepi16_epi32(lanes));
    const __m128i low = _mm256_castsi256_si128(first), high = _mm256_extracti128_si256(first, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(end), _mm_packus_epi32(low, high));
    return end + std::popcount(static_cast<unsigned>(mask));
  }
};

template <typename Type>
struct Bracket256 {
  using bits_t = typename Type::bits_t;
  using Lanes = Lanes256<bits_t>;
  static constexpr int kLanes = 32 / sizeof(bits_t);

  DSD_AVX2_INLINE int64_t sum(__m256i lanes) {
    alignas(32) bits_t counts[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(counts), lanes);
    int64_t total = 0;
    for (const bits_t count : counts) total += static_cast<int64_t>(count);
    return total;
  }

  // n is a multiple of kLanes, and of no more weights than a lane can count
  DSD_TARGET_AVX2 static BracketCounts chunk(const bits_t* data, int64_t n, const Limits<Type>& limits, bits_t* inside,
                                             int64_t ahead_bytes) {
    const __m256i magnitude_bits = Lanes::all(Type::magnitude_bits);
    const __m256i lo = Lanes::all(limits.lo), lo_end = Lanes::all(limits.lo_end);
    const __m256i hi = Lanes::all(limits.hi), hi_end = Lanes::all(limits.hi_end);
    __m256i n_below = _mm256_setzero_si256(), n_above_lo = n_below, n_above_hi = n_below;
    bits_t* end = inside;
    for (int64_t i = 0; i < n; i += kLanes) {
      prefetch(data + i, ahead_bytes);
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i));
      const __m256i magnitudes = _mm256_and_si256(weights, magnitude_bits);
      const __m256i above_lo = Lanes::greater(magnitudes, lo_end);
      n_below = Lanes::minus(n_below, Lanes::greater(lo, magnitudes));  // a lane that holds true is -1
      n_above_lo = Lanes::minus(n_above_lo, above_lo);
      n_above_hi = Lanes::minus(n_above_hi, Lanes::greater(magnitudes, hi_end));
      end = Lanes::append(end, _mm256_and_si256(above_lo, Lanes::greater(hi, magnitudes)), magnitudes);
    }
    return counts_of(n, sum(n_below), sum(n_above_lo), end - inside, sum(n_above_hi));
  }

  static BracketCounts run(const bits_t* data, int64_t n, const Limits<Type>& limits, bits_t* inside,
                           int64_t ahead_bytes) {
    return split_in_blocks(
        data, n, kLanes, kChunkWeights, limits, inside,
        [&](const bits_t* data, int64_t n, bits_t* inside) { return chunk(data, n, limits, inside, ahead_bytes); });
  }
};

#undef DSD_AVX2_INLINE

}  // namespace dsd::cpu

#endif
