// The pass of bracket.h with AVX-512: what lies inside is compressed and stored without a branch.
#pragma once

#include <bit>
#include <cstdint>

#include "bracket_scalar.h"
#include "isa.h"
#include "keys.h"

#if defined(DSD_HAS_X86_TARGETS)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own header
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace dsd::cpu {

#define DSD_AVX512_INLINE DSD_TARGET_AVX512 __attribute__((always_inline)) static inline

// What the pass needs of a vector of magnitudes of one width; a mask has a bit for each.
template <typename bits_t>
struct Lanes512;

template <>
struct Lanes512<uint16_t> {
  DSD_AVX512_INLINE __m512i all(int16_t x) { return _mm512_set1_epi16(x); }
  DSD_AVX512_INLINE __m512i load(uint64_t valid, const void* p) { return _mm512_maskz_loadu_epi16(valid, p); }
  DSD_AVX512_INLINE uint64_t greater(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmpgt_epi16_mask(valid, a, b);
  }
  DSD_AVX512_INLINE __m512i compress(uint64_t which, __m512i lanes) {
    // written out: with VBMI2 among the targets, the compiler might use it for wider lanes, where it may be missing
    __m512i compressed;
    __asm__("vpcompressw %1, %0 %{%2%}%{z%}" : "=v"(compressed) : "v"(lanes), "Yk"(which));
    return compressed;
  }
};

template <>
struct Lanes512<uint32_t> {
  DSD_AVX512_INLINE __m512i all(int32_t x) { return _mm512_set1_epi32(x); }
  DSD_AVX512_INLINE __m512i load(uint64_t valid, const void* p) { return _mm512_maskz_loadu_epi32(valid, p); }
  DSD_AVX512_INLINE uint64_t greater(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmpgt_epi32_mask(valid, a, b);
  }
  DSD_AVX512_INLINE __m512i compress(uint64_t which, __m512i lanes) {
    return _mm512_maskz_compress_epi32(which, lanes);
  }
};

template <>
struct Lanes512<uint64_t> {
  DSD_AVX512_INLINE __m512i all(int64_t x) { return _mm512_set1_epi64(x); }
  DSD_AVX512_INLINE __m512i load(uint64_t valid, const void* p) { return _mm512_maskz_loadu_epi64(valid, p); }
  DSD_AVX512_INLINE uint64_t greater(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmpgt_epi64_mask(valid, a, b);
  }
  DSD_AVX512_INLINE __m512i compress(uint64_t which, __m512i lanes) {
    return _mm512_maskz_compress_epi64(which, lanes);
  }
};

template <typename Type>
struct Bracket512 {
  using bits_t = typename Type::bits_t;
  using Lanes = Lanes512<bits_t>;
  static constexpr int kLanes = 64 / sizeof(bits_t);

  struct Bounds {
    __m512i magnitude_bits, lo, lo_end, hi, hi_end;
  };

  // Counters of their own, in registers: as one struct they would be moved through memory at each vector.
  DSD_AVX512_INLINE bits_t* vector(const bits_t* data, uint64_t valid, const Bounds& bounds, bits_t* inside,
                                   int64_t& below, int64_t& above_lo, int64_t& above_hi) {
    const __m512i magnitudes = _mm512_and_si512(Lanes::load(valid, data), bounds.magnitude_bits);
    const uint64_t is_above_lo = Lanes::greater(valid, magnitudes, bounds.lo_end);
    const uint64_t is_inside = Lanes::greater(is_above_lo, bounds.hi, magnitudes);
    below += std::popcount(Lanes::greater(valid, bounds.lo, magnitudes));
    above_lo += std::popcount(is_above_lo);
    above_hi += std::popcount(Lanes::greater(valid, magnitudes, bounds.hi_end));
    _mm512_storeu_si512(inside, Lanes::compress(is_inside, magnitudes));
    return inside + std::popcount(is_inside);
  }

  DSD_TARGET_AVX512 static BracketCounts run(const bits_t* data, int64_t n, const Limits<Type>& limits, bits_t* inside,
                                             int64_t ahead_bytes) {
    const Bounds bounds{Lanes::all(Type::magnitude_bits), Lanes::all(limits.lo), Lanes::all(limits.lo_end),
                        Lanes::all(limits.hi), Lanes::all(limits.hi_end)};
    const uint64_t all = ~uint64_t(0) >> (64 - kLanes);
    int64_t below = 0, above_lo = 0, above_hi = 0, i = 0;
    bits_t* end = inside;
    for (; i + kLanes <= n; i += kLanes) {
      prefetch(data + i, ahead_bytes);
      end = vector(data + i, all, bounds, end, below, above_lo, above_hi);
    }
    if (i < n) end = vector(data + i, all >> (kLanes - (n - i)), bounds, end, below, above_lo, above_hi);
    return counts_of(n, below, above_lo, end - inside, above_hi);
  }
};

#undef DSD_AVX512_INLINE

}  // namespace dsd::cpu

#endif
