// How many weights have each value of one digit of their magnitude keys, for selection over shards; one read of the
// weights.
#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>

#include "../ops.h"
#include "chunks.h"
#include "guards.h"
#include "isa.h"
#include "keys.h"

namespace dsd::cpu {
namespace {

// Keys whose higher digits are not the prefix count in the last bin, which nobody reads. As in radix_select.h, digits
// are found block by block and counted into two tables in turn; after the first digits most blocks have none to count.
template <typename Type>
struct DigitLoop {
  using bits_t = typename Type::bits_t;
  using Counts = std::array<uint32_t, kCountedValues + 1>;

  static DSD_INLINE void block(const bits_t* data, int n, uint64_t prefix, int shift, std::array<Counts, 2>& counts) {
    uint16_t bins[kWordWeights];
    uint16_t any = 0;
    for (int j = 0; j < n; ++j) {
      const bits_t digits = static_cast<bits_t>(Type::key(data[j]) >> shift);
      const bool counted = static_cast<bits_t>(digits >> kCountedBits) == static_cast<bits_t>(prefix);
      bins[j] = static_cast<uint16_t>(counted ? digits & (kCountedValues - 1) : kCountedValues);
      any |= counted;
    }
    if (any == 0) return;
    for (int j = 0; j < n; ++j) ++counts[j % 2][bins[j]];
  }

  static DSD_INLINE void run(const bits_t* data, int64_t n, uint64_t prefix, int shift, int64_t* histogram) {
    std::array<Counts, 2> counts{};
    for (int64_t i = 0; i < n; i += kWordWeights) {
      if (n - i >= kWordWeights)
        block(data + i, kWordWeights, prefix, shift, counts);
      else
        block(data + i, static_cast<int>(n - i), prefix, shift, counts);
    }
    for (int64_t value = 0; value < kCountedValues; ++value) {
      const int64_t count = int64_t(counts[0][value]) + counts[1][value];
      if (count != 0) std::atomic_ref<int64_t>(histogram[value]).fetch_add(count, std::memory_order_relaxed);
    }
  }
};

template <typename Type>
void count_digits(const Tensors& tensors, const int64_t* prefixes, int shift, int64_t* histograms) {
  const auto chunks = make_chunks(tensors);
  for_each_chunk(chunks, [&](int64_t i) {
    const auto [tensor, begin, end] = chunks[i];
    const auto* weights = static_cast<const typename Type::bits_t*>(tensors[tensor].const_data_ptr());
    Multiversioned<DigitLoop<Type>>::run(weights + begin, end - begin, static_cast<uint64_t>(prefixes[tensor]), shift,
                                         histograms + tensor * kCountedValues);
  });
}

}  // namespace

Tensor magnitude_histogram(const Tensors& tensors, const Tensor& prefixes, int64_t shift) {
  guard_k(prefixes, tensors);
  guard_like("tensors", tensors, tensors);
  Tensor histograms = torch::stable::new_zeros(prefixes, {static_cast<int64_t>(tensors.size()), kCountedValues});
  if (tensors.empty()) return histograms;
  visit_dtype(tensors[0].scalar_type(), [&](auto type) {
    using Type = decltype(type);
    STD_TORCH_CHECK(0 <= shift && shift < Type::key_bits, "dsd_kernels: shift: expected a bit of the key, got ", shift);
    count_digits<Type>(tensors, prefixes.const_data_ptr<int64_t>(), static_cast<int>(shift),
                       histograms.mutable_data_ptr<int64_t>());
  });
  return histograms;
}

}  // namespace dsd::cpu
