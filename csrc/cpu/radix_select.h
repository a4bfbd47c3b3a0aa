// The k-th smallest magnitude key of each tensor of a list, exactly, by radix digits from the top: one read of the
// weights per digit (3 in float32, 2 in half precision, 6 in float64).
#pragma once

#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include "../ops.h"
#include "chunks.h"
#include "types.h"

namespace dsd::cpu {

constexpr int kDigitBits = 11;
constexpr size_t kBins = size_t(1) << kDigitBits;
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

// Count the digit at `shift` over the keys of a chunk whose higher digits are those of `prefix`.
template <typename Type>
void count_digits(const void* weights, const Chunk& chunk, typename Type::bits_t prefix, int shift, int width,
                  Histogram& histogram) {
  using bits_t = typename Type::bits_t;
  std::array<uint32_t, kBins> counts{};
  const bits_t digit_mask = static_cast<bits_t>((uint64_t(1) << width) - 1);
  const bits_t wanted = static_cast<bits_t>(prefix >> shift >> width);
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    const bits_t digits = load_key<Type>(weights, i) >> shift;
    if (static_cast<bits_t>(digits >> width) == wanted) ++counts[digits & digit_mask];
  }
  for (size_t bin = 0; bin <= digit_mask; ++bin)
    if (counts[bin] != 0) histogram[bin].fetch_add(counts[bin], std::memory_order_relaxed);
}

// Step into the bin that holds the n_ties-th key still looked for.
template <typename bits_t>
void take_digit(const Histogram& histogram, int shift, Selection<bits_t>& selection) {
  size_t bin = 0;
  while (bin + 1 < kBins && histogram[bin] < selection.n_ties) selection.n_ties -= histogram[bin++];
  selection.threshold = static_cast<bits_t>(selection.threshold | (bits_t(bin) << shift));
  selection.n_equal = histogram[bin];
}

// With k = 0 (or no weights) the selection is threshold 0 with 0 ties: nothing.
template <typename Type>
std::vector<Selection<typename Type::bits_t>> radix_select(const Tensors& tensors, const int64_t* k,
                                                           const std::vector<Chunk>& chunks) {
  std::vector<Selection<typename Type::bits_t>> selections;
  for (size_t i = 0; i < tensors.size(); ++i)
    selections.push_back({0, std::min(std::max(k[i], int64_t(0)), tensors[i].numel()), 0});
  for (int top = Type::key_bits; top > 0;) {
    const int width = std::min(kDigitBits, top);
    const int shift = top - width;
    std::vector<Histogram> histograms(tensors.size());
    for_each_chunk(chunks, [&](int64_t i) {
      const size_t tensor = chunks[i].tensor;
      count_digits<Type>(tensors[tensor].const_data_ptr(), chunks[i], selections[tensor].threshold, shift, width,
                         histograms[tensor]);
    });
    for (size_t i = 0; i < tensors.size(); ++i) take_digit(histograms[i], shift, selections[i]);
    top = shift;
  }
  return selections;
}

}  // namespace dsd::cpu
