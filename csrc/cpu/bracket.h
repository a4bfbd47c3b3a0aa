// One pass over keys that tells how many lie below, at and within two bounds, and collects those within: what a
// selection reads of its weights. Ties at a bound are only counted, so that no number of them needs storage.
#pragma once

#include <bit>
#include <cstdint>

#include "bracket_avx512.h"
#include "chunks.h"
#include "isa.h"
#include "keys.h"
#include "words.h"

namespace dsd::cpu {

constexpr int64_t kCollectSlack = 64;  // keys that may be written behind the last one collected

// In blocks of 64: comparisons vectorise, and only the few keys inside are handled one by one.
template <typename Type>
struct BracketLoop {
  using bits_t = typename Type::bits_t;

  static DSD_INLINE uint64_t block(const bits_t* data, int n, Bracket<bits_t> bracket, BracketCounts& counts) {
    for (int j = 0; j < n; j += kLineBytes / sizeof(bits_t)) prefetch_after(data + j);
    uint8_t inside[kWordWeights] = {};
    bits_t below = 0, at_lo = 0, at_hi = 0;
    for (int j = 0; j < n; ++j) {
      const bits_t key = Type::key(data[j]);
      below += key < bracket.lo;
      at_lo += key == bracket.lo;
      at_hi += key == bracket.hi;
      inside[j] = (key > bracket.lo) & (key < bracket.hi);
    }
    counts.below += below;
    counts.at_lo += at_lo;
    counts.at_hi += at_hi;
    return pack_word(inside);
  }

  static DSD_INLINE void run(const bits_t* data, int64_t n, Bracket<bits_t> bracket, bits_t* inside,
                             BracketCounts* result) {
    BracketCounts counts{};
    for (int64_t i = 0; i < n; i += kWordWeights) {
      uint64_t word = n - i >= kWordWeights ? block(data + i, kWordWeights, bracket, counts)
                                            : block(data + i, static_cast<int>(n - i), bracket, counts);
      for (; word != 0; word &= word - 1) inside[counts.inside++] = Type::key(data[i + std::countr_zero(word)]);
    }
    *result = counts;
  }
};

// Split n weights, or keys, by the bracket; `inside` has room for all of them and kCollectSlack more.
template <typename Type>
BracketCounts split_by_bracket(const typename Type::bits_t* data, int64_t n, Bracket<typename Type::bits_t> bracket,
                               typename Type::bits_t* inside) {
  BracketCounts counts;
#if defined(DSD_HAS_X86_TARGETS)
  if (isa() == Isa::avx512)
    counts = BracketLoop512<Type>::run(data, n, bracket, inside);
  else
#endif
    Multiversioned<BracketLoop<Type>>::run(data, n, bracket, inside, &counts);
  if (bracket.lo == bracket.hi) counts.at_hi = 0;
  return counts;
}

}  // namespace dsd::cpu
