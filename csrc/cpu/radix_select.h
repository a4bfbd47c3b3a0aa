// The k-th smallest magnitude key of each tensor of a list, exactly, by radix digits from the top. The first digit
// reads all weights, a second read collects those that share it (some 2 % of a Gaussian), and the other digits are
// found among these. Where a quarter or more share it, each further digit reads all weights again.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <vector>

#include "../ops.h"
#include "chunks.h"
#include "isa.h"
#include "types.h"
#include "words.h"

namespace dsd::cpu {

constexpr int kDigitBits = 11;
constexpr size_t kBins = size_t(1) << kDigitBits;
constexpr int64_t kFewWeights = 1 << kDigitBits;
using Histogram = std::array<std::atomic<int64_t>, kBins>;

// The k smallest weights are those with a key below `threshold` and the first `n_ties` of the `n_equal` equal to it.
template <typename bits_t>
struct Selection {
  bits_t threshold;
  int64_t n_ties;
  int64_t n_equal;
};

template <typename Type>
DSD_INLINE typename Type::bits_t load_key(const void* weights, int64_t i) {
  typename Type::bits_t bits;
  std::memcpy(&bits, static_cast<const typename Type::bits_t*>(weights) + i, sizeof(bits));
  return Type::key(bits);
}

// Where the keys of a tensor are read: its weights, or the candidates collected from them (the key of a key is itself).
struct Source {
  const void* data;
  int64_t n;
};

inline int64_t size_of(const Source& source) { return source.n; }

// Count the digit at `shift` over the keys of a chunk whose higher digits are those of `prefix`; others count in the
// last bin, which nobody reads. Digits are found block by block, which vectorises, and counted into two tables in turn:
// a run of equal digits would otherwise wait for each count to be stored before it can be raised again.
template <typename Type>
struct CountLoop {
  using bits_t = typename Type::bits_t;
  using Counts = std::array<uint32_t, kBins + 1>;

  static DSD_INLINE void block(const void* data, int64_t i, int n, bits_t prefix, int shift, int width,
                               std::array<Counts, 2>& counts) {
    const bits_t digit_mask = static_cast<bits_t>((uint64_t(1) << width) - 1);
    const bits_t wanted = static_cast<bits_t>(prefix >> shift >> width);
    uint16_t bins[kWordWeights];
    for (int j = 0; j < n; ++j) {
      const bits_t digits = static_cast<bits_t>(load_key<Type>(data, i + j) >> shift);
      const bool counted = static_cast<bits_t>(digits >> width) == wanted;
      bins[j] = static_cast<uint16_t>(counted ? digits & digit_mask : kBins);
    }
    for (int j = 0; j < n; ++j) ++counts[j % 2][bins[j]];
  }

  static DSD_INLINE void run(const void* data, Chunk chunk, bits_t prefix, int shift, int width, Histogram* histogram) {
    std::array<Counts, 2> counts{};
    for (int64_t i = chunk.begin; i < chunk.end; i += kWordWeights) {
      if (chunk.end - i >= kWordWeights)
        block(data, i, kWordWeights, prefix, shift, width, counts);
      else
        block(data, i, static_cast<int>(chunk.end - i), prefix, shift, width, counts);
    }
    for (size_t bin = 0; bin < kBins; ++bin) {
      const int64_t count = int64_t(counts[0][bin]) + counts[1][bin];
      if (count != 0) (*histogram)[bin].fetch_add(count, std::memory_order_relaxed);
    }
  }
};

// Append a chunk's keys whose digits from `shift` up are those of `prefix`; in any order, for only their values count.
template <typename Type>
struct CollectLoop {
  using bits_t = typename Type::bits_t;

  static DSD_INLINE uint64_t matches(const void* data, int64_t i, int n, bits_t prefix, int shift) {
    uint8_t match[kWordWeights] = {};
    const bits_t wanted = static_cast<bits_t>(prefix >> shift);
    for (int j = 0; j < n; ++j) match[j] = static_cast<bits_t>(load_key<Type>(data, i + j) >> shift) == wanted;
    return pack_word(match);
  }

  static DSD_INLINE void run(const void* data, Chunk chunk, bits_t prefix, int shift, bits_t* candidates,
                             std::atomic<int64_t>* n_candidates) {
    std::array<bits_t, kChunkWeights> found;
    int64_t n = 0;
    for (int64_t i = chunk.begin; i < chunk.end; i += kWordWeights) {
      uint64_t word = chunk.end - i >= kWordWeights ? matches(data, i, kWordWeights, prefix, shift)
                                                    : matches(data, i, static_cast<int>(chunk.end - i), prefix, shift);
      for (; word != 0; word &= word - 1) found[n++] = load_key<Type>(data, i + std::countr_zero(word));
    }
    if (n != 0) std::memcpy(candidates + n_candidates->fetch_add(n), found.data(), n * sizeof(bits_t));
  }
};

// Step into the bin that holds the n_ties-th key still looked for.
template <typename bits_t>
void take_digit(const Histogram& histogram, int shift, Selection<bits_t>& selection) {
  size_t bin = 0;
  while (bin + 1 < kBins && histogram[bin] < selection.n_ties) selection.n_ties -= histogram[bin++];
  selection.threshold = static_cast<bits_t>(selection.threshold | (bits_t(bin) << shift));
  selection.n_equal = histogram[bin];
}

// Replace the sources of which few keys remain by these keys; `storage` keeps them.
template <typename Type>
void compact(std::vector<Source>& sources, const std::vector<Selection<typename Type::bits_t>>& selections, int shift,
             std::vector<std::vector<typename Type::bits_t>>& storage) {
  std::vector<Source> read;
  for (size_t i = 0; i < sources.size(); ++i) {
    const bool few = selections[i].n_equal <= sources[i].n / 4;
    read.push_back({sources[i].data, few ? sources[i].n : 0});
    if (few) storage[i].resize(selections[i].n_equal);
  }
  std::vector<std::atomic<int64_t>> n_candidates(sources.size());
  const auto chunks = make_chunks(read);
  for_each_chunk(chunks, [&](int64_t i) {
    const size_t tensor = chunks[i].tensor;
    Multiversioned<CollectLoop<Type>>::run(read[tensor].data, chunks[i], selections[tensor].threshold, shift,
                                           storage[tensor].data(), &n_candidates[tensor]);
  });
  for (size_t i = 0; i < sources.size(); ++i)
    if (read[i].n != 0) sources[i] = {storage[i].data(), static_cast<int64_t>(storage[i].size())};
}

// The selections by radix digits, from k in `n_ties`; with k = 0 the threshold is 0, with none of its ties.
template <typename Type>
void select_by_digits(std::vector<Source> sources, std::vector<Selection<typename Type::bits_t>>& selections) {
  std::vector<std::vector<typename Type::bits_t>> storage(sources.size());
  for (int top = Type::key_bits; top > 0;) {
    const int width = std::min(kDigitBits, top);
    const int shift = top - width;
    std::vector<Histogram> histograms(sources.size());
    const auto chunks = make_chunks(sources);
    for_each_chunk(chunks, [&](int64_t i) {
      const size_t tensor = chunks[i].tensor;
      Multiversioned<CountLoop<Type>>::run(sources[tensor].data, chunks[i], selections[tensor].threshold, shift, width,
                                           &histograms[tensor]);
    });
    for (size_t i = 0; i < sources.size(); ++i) take_digit(histograms[i], shift, selections[i]);
    if (top == Type::key_bits) compact<Type>(sources, selections, shift, storage);
    top = shift;
  }
}

// The selection of a few weights, for which a histogram would be larger than they are.
template <typename Type>
Selection<typename Type::bits_t> select_of_few(const Source& source, int64_t k) {
  if (k == 0) return {0, 0, source.n};  // none of the weights, however many are equal to 0
  std::vector<typename Type::bits_t> keys(source.n);
  for (int64_t i = 0; i < source.n; ++i) keys[i] = load_key<Type>(source.data, i);
  std::nth_element(keys.begin(), keys.begin() + (k - 1), keys.end());
  const auto threshold = keys[k - 1];
  const int64_t n_below = std::count_if(keys.begin(), keys.end(), [&](auto key) { return key < threshold; });
  return {threshold, k - n_below, std::count(keys.begin(), keys.end(), threshold)};
}

template <typename Type>
std::vector<Selection<typename Type::bits_t>> radix_select(const Tensors& tensors, const int64_t* k) {
  using bits_t = typename Type::bits_t;
  std::vector<Selection<bits_t>> selections(tensors.size()), large_selections;
  std::vector<Source> large;
  std::vector<size_t> large_indices;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Source source{tensors[i].const_data_ptr(), tensors[i].numel()};
    const int64_t k_in_range = std::min(std::max(k[i], int64_t(0)), source.n);
    if (source.n <= kFewWeights) {
      selections[i] = select_of_few<Type>(source, k_in_range);
    } else {
      large.push_back(source);
      large_selections.push_back({0, k_in_range, 0});
      large_indices.push_back(i);
    }
  }
  if (!large.empty()) select_by_digits<Type>(large, large_selections);
  for (size_t i = 0; i < large.size(); ++i) selections[large_indices[i]] = large_selections[i];
  return selections;
}

}  // namespace dsd::cpu
