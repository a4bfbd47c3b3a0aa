// What the passes of bracket.h compare weights with, and the pass over one weight after another, for the last few.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "keys.h"

namespace dsd::cpu {

// A bracket as bounds on magnitudes. Those of NaNs may exceed the NaN key: where that is a bound, no magnitude is above
// it. Signed, since that is all that older vector units compare; magnitudes leave the sign's bit free.
template <typename Type>
struct Limits {
  using bits_t = typename Type::bits_t;
  using magnitude_t = std::make_signed_t<bits_t>;
  magnitude_t lo, lo_end, hi, hi_end;

  explicit Limits(Bracket<bits_t> bracket)
      : lo(bracket.lo), lo_end(end_of(bracket.lo)), hi(bracket.hi), hi_end(end_of(bracket.hi)) {}

  bool is_inside(bits_t magnitude) const { return static_cast<bits_t>(magnitude - first_inside) < n_inside; }

 private:
  bits_t first_inside = static_cast<bits_t>(lo_end) + 1;
  bits_t n_inside = hi > lo_end ? static_cast<bits_t>(hi) - first_inside : 0;

  static magnitude_t end_of(bits_t bound) { return bound == Type::nan_key ? Type::magnitude_bits : bound; }
};

template <typename Type>
DSD_INLINE BracketCounts split_one_by_one(const typename Type::bits_t* data, int64_t n, const Limits<Type>& limits,
                                          typename Type::bits_t* inside) {
  BracketCounts counts{};
  for (int64_t i = 0; i < n; ++i) {
    const auto magnitude = static_cast<typename Limits<Type>::magnitude_t>(data[i] & Type::magnitude_bits);
    inside[counts.inside] = static_cast<typename Type::bits_t>(magnitude);
    counts.below += magnitude < limits.lo;
    counts.at_lo += (magnitude >= limits.lo) & (magnitude <= limits.lo_end);
    counts.inside += limits.is_inside(static_cast<typename Type::bits_t>(magnitude));
    counts.at_hi += (magnitude > limits.lo_end) & (magnitude >= limits.hi) & (magnitude <= limits.hi_end);
  }
  return counts;
}

// Of n weights that a pass has counted by comparisons.
inline BracketCounts counts_of(int64_t n, int64_t below, int64_t above_lo, int64_t inside, int64_t above_hi) {
  return {below, n - above_lo - below, inside, above_lo - inside - above_hi};
}

// Whole blocks, of a multiple of `step` weights, by block(data, n, inside), and the last few weights one by one.
template <typename Type, typename Block>
BracketCounts split_in_blocks(const typename Type::bits_t* data, int64_t n, int64_t step, int64_t block_weights,
                              const Limits<Type>& limits, typename Type::bits_t* inside, const Block& block) {
  BracketCounts counts{};
  const int64_t n_whole = n - n % step;
  for (int64_t i = 0; i < n_whole; i += block_weights)
    counts += block(data + i, std::min(n_whole - i, block_weights), inside + counts.inside);
  counts += split_one_by_one(data + n_whole, n - n_whole, limits, inside + counts.inside);
  return counts;
}

}  // namespace dsd::cpu
