// How the k-th smallest key is closed in on, for host and device: by a bracket that a sample suggests and counts
// verify, and by radix digits. Keys are 64 bits wide here, whatever the weights are.
#pragma once

#include <cstdint>

#include "../sgd_update.h"
#include "../stochastic_rounding.h"

namespace dsd::cuda {

constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr float kMargin = 4;  // standard deviations of the rank that a sample estimates
constexpr int kRun = 8;       // neighbours that are sampled together: they come in one access to memory

// The key looked for is the rank-th smallest of those within [lo, hi]. Once found, n_equal keys are equal to it, and
// the first `rank` of them belong to the k smallest.
struct Search {
  uint64_t lo;
  uint64_t hi;
  int64_t rank;
  int64_t n_equal;
  bool is_found;

  DSD_INLINE void find(uint64_t key, int64_t new_rank, int64_t count) { *this = {key, key, new_rank, count, true}; }
};

// How many keys lie where; at_hi is 0 where both bounds are the same. Where a bound is nan_key, its count may lack
// other NaNs: what the counts of all keys leave is at it.
struct Counts {
  int64_t below;
  int64_t at_lo;
  int64_t inside;
  int64_t at_hi;
};

// The search among all n keys of a type. k is clamped to [0, n]; with k = 0 it finds that none is below the least key.
DSD_INLINE Search begin_search(int64_t k, int64_t n, uint64_t nan_key) {
  const int64_t rank = k < 0 ? 0 : k < n ? k : n;
  Search search{0, nan_key, rank, 0, false};
  if (rank == 0) search.find(0, 0, n);
  return search;
}

// Go on where the key must lie, as the counts of all n keys tell, whether the bracket holds it or not. Returns whether
// it is one of those inside.
DSD_INLINE bool narrow_by_counts(Search& search, const Counts& counts, int64_t n, uint64_t nan_key) {
  const int64_t up_to_lo = search.lo < nan_key ? counts.below + counts.at_lo : n;
  const int64_t below_hi = up_to_lo + counts.inside;
  const int64_t up_to_hi = search.hi < nan_key ? below_hi + counts.at_hi : n;
  if (search.rank <= counts.below) {
    search = {0, search.lo - 1, search.rank, 0, false};
  } else if (search.rank <= up_to_lo) {
    search.find(search.lo, search.rank - counts.below, up_to_lo - counts.below);
  } else if (search.rank <= below_hi) {
    search = {search.lo + 1, search.hi - 1, search.rank - up_to_lo, 0, false};
    return true;
  } else if (search.rank <= up_to_hi) {
    search.find(search.hi, search.rank - below_hi, up_to_hi - below_hi);
  } else {
    search = {search.hi + 1, nan_key, search.rank - up_to_hi, 0, false};
  }
  return false;
}

// How far the distance of a key from `lo` is shifted to be a digit.
DSD_INLINE int digit_shift(const Search& search) {
  const uint64_t width = search.hi - search.lo;
  const int bits = width == 0 ? 0 : 64 - __builtin_clzll(width);
  return bits > kDigitBits ? bits - kDigitBits : 0;
}

// Digits that a search over keys of so many bits takes at most.
DSD_INLINE constexpr int count_digits(int key_bits) { return (key_bits + kDigitBits - 1) / kDigitBits; }

// Go on among the n keys that have a digit; n_before have a smaller one.
DSD_INLINE void narrow_by_digit(Search& search, int digit, int64_t n_before, int64_t n) {
  const int shift = digit_shift(search);
  const uint64_t lo = search.lo + (static_cast<uint64_t>(digit) << shift);
  const uint64_t end = lo + ((uint64_t(1) << shift) - 1);
  const uint64_t hi = end < search.hi ? end : search.hi;
  search = {lo, hi, search.rank - n_before, n, lo == hi};
}

// The ranks in a sample between which the k-th of n keys lies, but for a rare miss. 0 and n_sample + 1 stand for no
// bound: the sample has none that is safe.
struct SampleRanks {
  int lo;
  int hi;
};

DSD_INLINE SampleRanks sample_ranks(int n_sample, int64_t k, int64_t n) {
  const float p = static_cast<float>(k) / static_cast<float>(n);
  const float variance = static_cast<float>(n_sample) * p * (1 - p);
  const float margin = 1 + kMargin * sqrtf(variance > 0 ? variance : 0);
  const float rank = static_cast<float>(n_sample) * p;
  const int lo = static_cast<int>(rank - margin);
  const int hi = static_cast<int>(rank + margin) + 1;
  return {lo > 0 ? lo : 0, hi <= n_sample ? hi : n_sample + 1};
}

// The i-th place of a sample of n_sample among n > n_sample: runs of neighbours, one in each stratum, at random there,
// so that no period in the weights meets the sample's.
DSD_INLINE int64_t sample_place(int i, int n_sample, int64_t n) {
  const int n_runs = n_sample / kRun;
  const int64_t run = i / kRun;
  const int64_t begin = run * n / n_runs;
  const int64_t room = (run + 1) * n / n_runs - begin - kRun + 1;
  return begin + static_cast<int64_t>(room * static_cast<uint64_t>(lowbias32(i / kRun)) >> 32) + i % kRun;
}

// What a chunk loses: the keys below the threshold, and of those at it, in memory order, the first n_ties.
struct Cut {
  int64_t n_ties;
  bool needs_order;
};

// Of a tensor that loses `rank` of n_equal ties, a chunk with `before` of them before it and `after` up to its end.
DSD_INLINE Cut cut_of_chunk(int64_t rank, int64_t before, int64_t after) {
  const int64_t left = rank < before ? 0 : rank - before;
  const int64_t n = after - before;
  return {left < n ? left : n, 0 < left && left < n};
}

}  // namespace dsd::cuda
