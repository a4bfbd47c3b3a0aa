// A bracket of the k-th smallest key by radix digits, where a sample has misled: exact, whatever the weights are.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>

#include "chunks.h"
#include "keys.h"

namespace dsd::cpu {

constexpr int kDigitBits = 11;
constexpr size_t kBins = size_t(1) << kDigitBits;
using Histogram = std::array<std::atomic<int64_t>, kBins>;

// How far the keys of a bracket, less its lower bound, are shifted to be a digit.
template <typename bits_t>
int digit_shift(Bracket<bits_t> bracket) {
  return std::max(0, static_cast<int>(std::bit_width(static_cast<bits_t>(bracket.hi - bracket.lo))) - kDigitBits);
}

// Count the digits of the keys within the bracket; others count in the last bin, which nobody reads. Digits are found
// block by block, which vectorises, and counted into two tables in turn: a run of equal digits would otherwise wait
// for each count to be stored before it can be raised again.
template <typename Type>
struct CountLoop {
  using bits_t = typename Type::bits_t;
  using Counts = std::array<uint32_t, kBins + 1>;

  static DSD_INLINE void block(const bits_t* data, int n, Bracket<bits_t> bracket, int shift,
                               std::array<Counts, 2>& counts) {
    uint16_t bins[kWordWeights];
    for (int j = 0; j < n; ++j) {
      const bits_t distance = static_cast<bits_t>(Type::key(data[j]) - bracket.lo);
      const bool counted = distance <= static_cast<bits_t>(bracket.hi - bracket.lo);
      bins[j] = static_cast<uint16_t>(counted ? distance >> shift : kBins);
    }
    for (int j = 0; j < n; ++j) ++counts[j % 2][bins[j]];
  }

  static DSD_INLINE void run(const bits_t* data, int64_t n, Bracket<bits_t> bracket, Histogram* histogram) {
    std::array<Counts, 2> counts{};
    const int shift = digit_shift(bracket);
    for (int64_t i = 0; i < n; i += kWordWeights) {
      if (n - i >= kWordWeights)
        block(data + i, kWordWeights, bracket, shift, counts);
      else
        block(data + i, static_cast<int>(n - i), bracket, shift, counts);
    }
    for (size_t bin = 0; bin < kBins; ++bin) {
      const int64_t count = int64_t(counts[0][bin]) + counts[1][bin];
      if (count != 0) (*histogram)[bin].fetch_add(count, std::memory_order_relaxed);
    }
  }
};

// The part of the bracket that shares the digit of the k-th key within it; k counts within that part then. Returns how
// many keys the part holds.
template <typename bits_t>
int64_t take_digit(const Histogram& histogram, Bracket<bits_t>& bracket, int64_t& k) {
  size_t bin = 0;
  while (bin + 1 < kBins && histogram[bin] < k) k -= histogram[bin++];
  const int shift = digit_shift(bracket);
  bracket.lo = static_cast<bits_t>(bracket.lo + (bits_t(bin) << shift));
  bracket.hi = std::min(bracket.hi, static_cast<bits_t>(bracket.lo + ((bits_t(1) << shift) - 1)));
  return histogram[bin];
}

}  // namespace dsd::cpu
