// The update over lists of one dtype: nearly every call, so the loop is compiled for each dtype and kind of call.
#pragma once

#include <array>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../sgd_update.h"
#include "chunks.h"
#include "isa.h"
#include "types.h"
#include "words.h"

namespace dsd::cpu {

// The weights of one tensor; momentum_buffer and mask are null where there is none.
template <typename storage_t>
struct Pointers {
  storage_t* param;
  const storage_t* grad;
  storage_t* momentum_buffer;
  const uint8_t* mask;
};

// The bits of a mask word, in lanes of the width of the weights.
template <typename lane_t>
constexpr auto kBit = [] {
  std::array<lane_t, 32> bits{};
  for (int j = 0; j < 32; ++j) bits[j] = lane_t(1) << j;
  return bits;
}();

template <typename Type, bool has_momentum, bool is_masked>
struct UpdateLoop {
  using storage_t = typename Type::storage_t;
  using compute_t = typename Type::compute_t;
  using lane_t = std::conditional_t<sizeof(compute_t) == 8, uint64_t, uint32_t>;
  static constexpr int kBlock = 32;  // three of these fit the registers
  static constexpr int kCacheLine = 64;
  static constexpr int kPrefetchAhead = 512;

  // Blocks pass through small arrays, one plain loop for each thing done, so that the compiler vectorises them all;
  // mask bits are tested in lanes of the width of the weights, so that they are never widened.
  static DSD_INLINE void block(const Pointers<storage_t>& at, int64_t i, int n, const SgdOptions<compute_t>& options) {
    compute_t param[kBlock], grad[kBlock], momentum_buffer[kBlock];
    uint32_t word = ~uint32_t(0);
    if constexpr (is_masked) std::memcpy(&word, at.mask + i / 8, sizeof(word));
    // of the word, or the compiler spreads the flag over the lanes in each block, at more than the update costs
    const uint32_t momentum_word = options.mask_momentum ? word : ~uint32_t(0);
    for (int j = 0; j < n; ++j) param[j] = at.param[i + j];
    for (int j = 0; j < n; ++j) grad[j] = at.grad[i + j];
    if constexpr (has_momentum)
      for (int j = 0; j < n; ++j) momentum_buffer[j] = at.momentum_buffer[i + j];
    for (int j = 0; j < n; ++j)
      sgd_update<has_momentum>(param[j], grad[j], momentum_buffer[j], !is_masked || (word & kBit<lane_t>[j]) != 0,
                               !is_masked || (momentum_word & kBit<lane_t>[j]) != 0, options);
    for (int j = 0; j < n; ++j) at.param[i + j] = param[j];
    if constexpr (has_momentum)
      for (int j = 0; j < n; ++j) at.momentum_buffer[i + j] = momentum_buffer[j];
  }

  // The processor's own prefetching stops at every page. Halves gain nothing: their time goes into conversions.
  static DSD_INLINE void prefetch(const Pointers<storage_t>& at, int64_t i) {
    if constexpr (sizeof(storage_t) > 2) {
      for (int j = 0; j < kBlock; j += kCacheLine / int(sizeof(storage_t))) {
        __builtin_prefetch(at.param + i + j);
        __builtin_prefetch(at.grad + i + j);
        if constexpr (has_momentum) __builtin_prefetch(at.momentum_buffer + i + j);
      }
    }
  }

  static DSD_INLINE void run(Pointers<storage_t> at, int64_t begin, int64_t end, SgdOptions<compute_t> options) {
    int64_t i = begin;
    for (; end - i >= kBlock; i += kBlock) {
      prefetch(at, i + kPrefetchAhead);
      block(at, i, kBlock, options);
    }
    if (i < end) block(at, i, static_cast<int>(end - i), options);
  }
};

template <typename Type>
void update_chunk(const Pointers<typename Type::storage_t>& at, const Chunk& chunk,
                  const SgdOptions<typename Type::compute_t>& options) {
  const auto run = [&](auto has_momentum, auto is_masked) {
    Multiversioned<UpdateLoop<Type, has_momentum.value, is_masked.value>>::run(at, chunk.begin, chunk.end, options);
  };
  if (at.momentum_buffer != nullptr)
    return at.mask != nullptr ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
  return at.mask != nullptr ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
}

template <typename Type>
void update_all(const std::vector<Pointers<typename Type::storage_t>>& table, const std::vector<Chunk>& chunks,
                const SgdOptions<typename Type::compute_t>& options) {
  for_each_chunk(chunks, [&](int64_t i) { update_chunk<Type>(table[chunks[i].tensor], chunks[i], options); });
}

}  // namespace dsd::cpu
