// The pass of bracket.h with AVX-512: what lies inside is compressed and stored without a branch.
#pragma once

#include <bit>
#include <cstdint>

#include "isa.h"
#include "keys.h"

#if defined(DSD_HAS_X86_TARGETS)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own header
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace dsd::cpu {

#define DSD_AVX512_INLINE DSD_TARGET_AVX512 __attribute__((always_inline)) static inline

// What the pass needs of a vector of keys of one width; a mask has a bit for each key.
template <typename bits_t>
struct Keys512;

template <>
struct Keys512<uint32_t> {
  static constexpr int n = 16;
  DSD_AVX512_INLINE __m512i all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  DSD_AVX512_INLINE __m512i load(uint64_t valid, const void* p) { return _mm512_maskz_loadu_epi32(valid, p); }
  DSD_AVX512_INLINE __m512i min(__m512i a, __m512i b) { return _mm512_min_epu32(a, b); }
  DSD_AVX512_INLINE uint64_t less(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmplt_epu32_mask(valid, a, b);
  }
  DSD_AVX512_INLINE uint64_t equal(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmpeq_epu32_mask(valid, a, b);
  }
  DSD_AVX512_INLINE void compress(uint32_t* out, uint64_t which, __m512i keys) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(which, keys));
  }
};

template <>
struct Keys512<uint64_t> {
  static constexpr int n = 8;
  DSD_AVX512_INLINE __m512i all(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
  DSD_AVX512_INLINE __m512i load(uint64_t valid, const void* p) { return _mm512_maskz_loadu_epi64(valid, p); }
  DSD_AVX512_INLINE __m512i min(__m512i a, __m512i b) { return _mm512_min_epu64(a, b); }
  DSD_AVX512_INLINE uint64_t less(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmplt_epu64_mask(valid, a, b);
  }
  DSD_AVX512_INLINE uint64_t equal(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmpeq_epu64_mask(valid, a, b);
  }
  DSD_AVX512_INLINE void compress(uint64_t* out, uint64_t which, __m512i keys) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(which, keys));
  }
};

template <>
struct Keys512<uint16_t> {
  static constexpr int n = 32;
  DSD_AVX512_INLINE __m512i all(uint16_t x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
  DSD_AVX512_INLINE __m512i load(uint64_t valid, const void* p) { return _mm512_maskz_loadu_epi16(valid, p); }
  DSD_AVX512_INLINE __m512i min(__m512i a, __m512i b) { return _mm512_min_epu16(a, b); }
  DSD_AVX512_INLINE uint64_t less(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmplt_epu16_mask(valid, a, b);
  }
  DSD_AVX512_INLINE uint64_t equal(uint64_t valid, __m512i a, __m512i b) {
    return _mm512_mask_cmpeq_epu16_mask(valid, a, b);
  }
  // 16-bit keys are compressed in 32 bits: the instruction for theirs is younger than AVX-512BW
  DSD_AVX512_INLINE void compress(uint16_t* out, uint64_t which, __m512i keys) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(keys));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(keys, 1));
    store(out, _mm512_maskz_compress_epi32(which & 0xffff, low));
    store(out + std::popcount(which & 0xffff), _mm512_maskz_compress_epi32(which >> 16, high));
  }
  DSD_AVX512_INLINE void store(uint16_t* out, __m512i keys) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(keys));
  }
};

template <typename Type>
struct BracketLoop512 {
  using bits_t = typename Type::bits_t;
  using Keys = Keys512<bits_t>;

  struct Bounds {
    __m512i magnitude_bits, nan_key, lo, hi;
  };

  // Counters of their own, in registers: as one struct they would be moved through memory at each vector.
  DSD_AVX512_INLINE bits_t* vector(const bits_t* data, uint64_t valid, const Bounds& bounds, bits_t* inside,
                                   int64_t& below, int64_t& at_lo, int64_t& at_hi) {
    prefetch_after(data);
    const __m512i magnitudes = _mm512_and_si512(Keys::load(valid, data), bounds.magnitude_bits);
    const __m512i keys = Keys::min(magnitudes, bounds.nan_key);
    const uint64_t within = Keys::less(Keys::less(valid, bounds.lo, keys), keys, bounds.hi);
    Keys::compress(inside, within, keys);
    below += std::popcount(Keys::less(valid, keys, bounds.lo));
    at_lo += std::popcount(Keys::equal(valid, keys, bounds.lo));
    at_hi += std::popcount(Keys::equal(valid, keys, bounds.hi));
    return inside + std::popcount(within);
  }

  DSD_TARGET_AVX512 static BracketCounts run(const bits_t* data, int64_t n, Bracket<bits_t> bracket, bits_t* inside) {
    const Bounds bounds{Keys::all(Type::magnitude_bits), Keys::all(Type::nan_key), Keys::all(bracket.lo),
                        Keys::all(bracket.hi)};
    const uint64_t all = ~uint64_t(0) >> (64 - Keys::n);
    int64_t below = 0, at_lo = 0, at_hi = 0, i = 0;
    bits_t* end = inside;
    for (; i + Keys::n <= n; i += Keys::n) end = vector(data + i, all, bounds, end, below, at_lo, at_hi);
    if (i < n) end = vector(data + i, all >> (Keys::n - (n - i)), bounds, end, below, at_lo, at_hi);
    return {below, at_lo, end - inside, at_hi};
  }
};

#undef DSD_AVX512_INLINE

}  // namespace dsd::cpu

#endif
