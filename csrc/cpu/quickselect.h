// The k-th smallest of keys that fit the caches. Each round brackets it by two ranks of a sample, as Floyd and Rivest
// do, and collects what lies inside.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../stochastic_rounding.h"
#include "bracket.h"
#include "isa.h"
#include "keys.h"

namespace dsd::cpu {

constexpr int64_t kRankedKeys = 64;  // of so few, the rank of each is counted
// Standard deviations of the rank that a sample estimates: a miss costs other reads of memory, or one in cache.
constexpr double kSafeMargin = 4;
constexpr double kCloseMargin = 2;
constexpr double kUnevenness = 1.0 / 16;  // how far the density of a bracket's keys may move a rank, in shares of them

// Floyd and Rivest's n^(2/3) balances the sample against the keys that it leaves inside the bracket; of the cache's
// keys, more can be read in the time that it takes to select from a larger sample.
inline int64_t sample_size(int64_t n) {
  if (n <= kChunkWeights) return std::min(n, kRankedKeys);
  const double root = std::cbrt(static_cast<double>(n));
  return static_cast<int64_t>(0.35 * root * root);
}

// How far the rank that a sample estimates for the p-quantile may be off.
inline double margin_of_sample(int64_t n_sample, double p, double deviations) {
  return 1 + deviations * std::sqrt(static_cast<double>(n_sample) * p * (1 - p));
}

// The i-th of n_sample places among n: one from each stratum, at random there, so that no period in the weights can
// meet the sample's.
class SamplePlaces {
 public:
  SamplePlaces(int64_t n, int64_t n_sample, uint32_t seed = 0)
      : step_((static_cast<uint64_t>(n) << kFraction) / n_sample), seed_(seed) {}

  int64_t operator[](int64_t i) const {
    const uint64_t offset = (step_ >> kFraction) * lowbias32(static_cast<uint32_t>(i) ^ seed_) >> 32;
    return static_cast<int64_t>((i * step_ >> kFraction) + offset);
  }

 private:
  static constexpr int kFraction = 16;
  uint64_t step_;
  uint32_t seed_;
};

// Of the second sample's places: those that the first has met decide, so that no weights mislead both but by design.
template <typename bits_t>
uint32_t second_seed(Bracket<bits_t> first) {
  return static_cast<uint32_t>((uint64_t(first.lo) + 3 * uint64_t(first.hi) + 1) * 0x9e3779b97f4a7c15u >> 32);
}

// The k-th smallest of some keys, and how many are smaller and how many are equal.
template <typename bits_t>
struct Ranked {
  bits_t key;
  int64_t below;
  int64_t equal;
};

// The k-th smallest, for each of n_k, of at most kRankedKeys keys: the largest of those that fewer than k are below.
template <typename Type>
struct RankLoop {
  using bits_t = typename Type::bits_t;

  // Selects into arrays and reductions are apart: in one loop they would not be vectorised.
  static DSD_INLINE Ranked<bits_t> pick(const bits_t* keys, const bits_t* below, bits_t k) {
    bits_t candidates[kRankedKeys];
    bits_t most = 0, key = 0, equal = 0;
    for (int64_t j = 0; j < kRankedKeys; ++j) candidates[j] = below[j] < k ? below[j] : bits_t(0);
    for (int64_t j = 0; j < kRankedKeys; ++j) most = most > candidates[j] ? most : candidates[j];
    for (int64_t j = 0; j < kRankedKeys; ++j) candidates[j] = below[j] == most ? keys[j] : bits_t(0);
    for (int64_t j = 0; j < kRankedKeys; ++j) key = key > candidates[j] ? key : candidates[j];
    for (int64_t j = 0; j < kRankedKeys; ++j) equal += below[j] == most;
    return {key, static_cast<int64_t>(most), static_cast<int64_t>(equal)};
  }

  static DSD_INLINE void run(const bits_t* data, int64_t n, const int64_t* k, int n_k, Ranked<bits_t>* results) {
    bits_t keys[kRankedKeys];
    bits_t below[kRankedKeys] = {};
    for (int64_t i = 0; i < n; ++i) keys[i] = Type::key(data[i]);
    for (int64_t i = n; i < kRankedKeys; ++i) keys[i] = static_cast<bits_t>(~bits_t(0));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < kRankedKeys; ++j) below[j] += keys[i] < keys[j];
    // what stands in for missing keys has all n of them below, and k is at most n
    for (int i = 0; i < n_k; ++i) results[i] = pick(keys, below, static_cast<bits_t>(k[i]));
  }
};

// The k-th smallest of n weights, or keys, which stay as they are; `scratch` has room for n + kCollectSlack: no round
// goes on with more than half of its keys. What lies `ahead_bytes` after each is fetched while it is read. All are
// known to lie between two keys, if these differ.
template <typename Type>
Ranked<typename Type::bits_t> select_ranked(const typename Type::bits_t* data, int64_t n, int64_t k,
                                            typename Type::bits_t* scratch, int64_t ahead_bytes = 0,
                                            Bracket<typename Type::bits_t> between = {});

// The keys of two ranks of a sample.
template <typename Type>
Bracket<typename Type::bits_t> select_two(const typename Type::bits_t* sample, int64_t n, int64_t lo, int64_t hi,
                                          typename Type::bits_t* scratch) {
  if (n > kRankedKeys)
    return {select_ranked<Type>(sample, n, lo, scratch).key, select_ranked<Type>(sample, n, hi, scratch).key};
  const int64_t k[2] = {lo, hi};
  Ranked<typename Type::bits_t> ranked[2];
  Multiversioned<RankLoop<Type>>::run(sample, n, k, 2, ranked);
  return {ranked[0].key, ranked[1].key};
}

// Two keys of a sample between which the k-th of n keys lies, but for a rare miss.
template <typename Type>
Bracket<typename Type::bits_t> bracket_of_sample(const typename Type::bits_t* sample, int64_t n_sample, int64_t k,
                                                 int64_t n, double deviations, typename Type::bits_t* scratch) {
  const double p = static_cast<double>(k) / static_cast<double>(n);
  const double rank = p * static_cast<double>(n_sample);
  const double margin = margin_of_sample(n_sample, p, deviations);
  const auto lo = static_cast<int64_t>(rank - margin);
  const auto hi = static_cast<int64_t>(rank + margin) + 1;
  const auto bracket = select_two<Type>(sample, n_sample, std::max(lo, int64_t(1)), std::min(hi, n_sample), scratch);
  return {lo >= 1 ? bracket.lo : typename Type::bits_t(0), hi <= n_sample ? bracket.hi : Type::nan_key};
}

template <typename Type>
Ranked<typename Type::bits_t> select_by_partition(const typename Type::bits_t* data, int64_t n, int64_t k,
                                                  typename Type::bits_t* keys) {
  for (int64_t i = 0; i < n; ++i) keys[i] = Type::key(data[i]);
  std::nth_element(keys, keys + (k - 1), keys + n);
  const auto key = keys[k - 1];
  return {key, std::count_if(keys, keys + n, [&](auto other) { return other < key; }), std::count(keys, keys + n, key)};
}

// Where the k-th of n keys should lie that are spread between two others almost evenly: what a bracket holds mostly is.
template <typename bits_t>
Bracket<bits_t> interpolate(Bracket<bits_t> between, int64_t n, int64_t k) {
  const double p = static_cast<double>(k) / static_cast<double>(n);
  const double margin = margin_of_sample(n, p, kCloseMargin) / static_cast<double>(n) + kUnevenness;
  const auto width = static_cast<double>(between.hi - between.lo);
  const auto at = [&](double share) {
    return std::min(between.hi, static_cast<bits_t>(between.lo + static_cast<bits_t>(share * width)));
  };
  return {at(std::max(p - margin, 0.0)), at(std::min(p + margin, 1.0))};
}

// Collect in scratch the keys inside a bracket of the k-th; a sample that misses it is asked again for a wider one.
template <typename Type>
BracketCounts split_by_sample(const typename Type::bits_t* data, int64_t n, int64_t k, typename Type::bits_t* scratch,
                              int64_t ahead_bytes, Bracket<typename Type::bits_t>& bracket) {
  const int64_t n_sample = sample_size(n);
  const SamplePlaces places(n, n_sample);
  for (double deviations = kCloseMargin;; ++deviations) {
    for (int64_t i = 0; i < n_sample; ++i) scratch[i] = Type::key(data[places[i]]);
    bracket = bracket_of_sample<Type>(scratch, n_sample, k, n, deviations, scratch + n_sample);
    const BracketCounts counts = split_by_bracket<Type>(data, n, bracket, scratch, ahead_bytes);
    if (counts.contain(k)) return counts;
  }
}

template <typename Type>
Ranked<typename Type::bits_t> select_ranked(const typename Type::bits_t* data, int64_t n, int64_t k,
                                            typename Type::bits_t* scratch, int64_t ahead_bytes,
                                            Bracket<typename Type::bits_t> between) {
  using bits_t = typename Type::bits_t;
  int64_t below = 0;
  const auto with_below = [&](const Ranked<bits_t>& ranked) -> Ranked<bits_t> {
    return {ranked.key, below + ranked.below, ranked.equal};
  };
  while (n > kRankedKeys) {
    Bracket<bits_t> bracket{};
    BracketCounts counts{};
    if (between.lo < between.hi) {
      bracket = interpolate(between, n, k);
      counts = split_by_bracket<Type>(data, n, bracket, scratch, 0);
    }
    if (!counts.contain(k) || counts.inside > n / 2)
      counts = split_by_sample<Type>(data, n, k, scratch, ahead_bytes, bracket);
    if (k <= counts.up_to_lo()) return {bracket.lo, below + counts.below, counts.at_lo};
    if (k > counts.below_hi()) return {bracket.hi, below + counts.below_hi(), counts.at_hi};
    below += counts.up_to_lo();
    k -= counts.up_to_lo();
    if (counts.inside > n / 2) return with_below(select_by_partition<Type>(scratch, counts.inside, k, scratch));
    data = scratch;
    ahead_bytes = 0;
    between = bracket;
    n = counts.inside;
    scratch += n;
  }
  Ranked<bits_t> ranked;
  Multiversioned<RankLoop<Type>>::run(data, n, &k, 1, &ranked);
  return with_below(ranked);
}

}  // namespace dsd::cpu
