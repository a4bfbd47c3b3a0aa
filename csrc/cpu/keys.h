// The magnitude keys of weights, read where they lie.
#pragma once

#include <cstdint>

#include "types.h"

namespace dsd::cpu {

constexpr int64_t kLineBytes = 64;

constexpr int64_t kAheadBytes = 4096;  // the hardware's own prefetching stops at each page

DSD_INLINE void prefetch(const void* address, int64_t ahead_bytes) {
  __builtin_prefetch(static_cast<const char*>(address) + ahead_bytes);
}

// Two bounds on keys, both included; lo <= hi.
template <typename bits_t>
struct Bracket {
  bits_t lo;
  bits_t hi;
};

// How many keys lie where; at_hi is 0 where both bounds are the same.
struct BracketCounts {
  int64_t below;
  int64_t at_lo;
  int64_t inside;
  int64_t at_hi;

  int64_t up_to_lo() const { return below + at_lo; }
  int64_t below_hi() const { return up_to_lo() + inside; }
  int64_t up_to_hi() const { return below_hi() + at_hi; }
  bool contain(int64_t k) const { return below < k && k <= up_to_hi(); }

  BracketCounts& operator+=(const BracketCounts& other) {
    below += other.below;
    at_lo += other.at_lo;
    inside += other.inside;
    at_hi += other.at_hi;
    return *this;
  }
};

// The k smallest weights are those with a key below `threshold` and the first `n_ties` of the `n_equal` equal to it.
template <typename bits_t>
struct Selection {
  bits_t threshold;
  int64_t n_ties;
  int64_t n_equal;
};

// How many keys lie below the threshold, and how many equal it.
struct Tally {
  int64_t below;
  int64_t equal;
};

template <typename Type>
Tally count(const typename Type::bits_t* weights, int64_t n, typename Type::bits_t threshold) {
  Tally tally{};
  for (int64_t i = 0; i < n; ++i) {
    tally.below += Type::key(weights[i]) < threshold;
    tally.equal += Type::key(weights[i]) == threshold;
  }
  return tally;
}

}  // namespace dsd::cpu
