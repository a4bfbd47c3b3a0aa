// The update over lists of different dtypes, in float32 arithmetic: one loop for all of them, which chooses how values
// are stored once a block, so that the mixtures are no product of templates.
#pragma once

#include <bit>
#include <cstring>

#include "../sgd_update.h"
#include "../stochastic_rounding.h"
#include "chunks.h"
#include "types.h"
#include "words.h"

namespace dsd::cpu {

using torch::headeronly::ScalarType;

struct MixedFormats {
  ScalarType param;
  ScalarType grad;
  ScalarType momentum_buffer;
  ScalarType copy;
  bool stochastic;
};

// The weights of one tensor; momentum_buffer, copy and mask are null where there is none.
struct MixedPointers {
  void* param;
  const void* grad;
  void* momentum_buffer;
  void* copy;
  const uint8_t* mask;
  uint32_t rounding_key;
};

template <typename storage_t>
DSD_INLINE void load_as(const void* from, int64_t i, int n, float* values) {
  const storage_t* stored = static_cast<const storage_t*>(from) + i;
  for (int j = 0; j < n; ++j) values[j] = stored[j];
}

DSD_INLINE void load(const void* from, ScalarType dtype, int64_t i, int n, float* values) {
  if (dtype == ScalarType::Float) return load_as<Float32::storage_t>(from, i, n, values);
  if (dtype == ScalarType::BFloat16) return load_as<BFloat16::storage_t>(from, i, n, values);
  load_as<Float16::storage_t>(from, i, n, values);
}

template <typename storage_t>
DSD_INLINE void store_as(void* to, int64_t i, int n, const float* values) {
  storage_t* stored = static_cast<storage_t*>(to) + i;
  for (int j = 0; j < n; ++j) stored[j] = values[j];
}

DSD_INLINE void store(void* to, ScalarType dtype, int64_t i, int n, const float* values) {
  if (dtype == ScalarType::Float) return store_as<Float32::storage_t>(to, i, n, values);
  if (dtype == ScalarType::BFloat16) return store_as<BFloat16::storage_t>(to, i, n, values);
  store_as<Float16::storage_t>(to, i, n, values);
}

DSD_INLINE void store_stochastically(void* to, ScalarType dtype, int64_t i, int n, const float* values, uint32_t key) {
  uint16_t* stored = static_cast<uint16_t*>(to) + i;
  const uint32_t first = static_cast<uint32_t>(i);
  if (dtype == ScalarType::BFloat16)
    for (int j = 0; j < n; ++j) stored[j] = round_to_bfloat16_stochastically(values[j], rounding_noise(key, first + j));
  else
    for (int j = 0; j < n; ++j) stored[j] = round_to_float16_stochastically(values[j], rounding_noise(key, first + j));
}

// Take the copy's value where that is not the rounded parameter: somebody else wrote it.
template <typename storage_t>
DSD_INLINE void follow_copy_as(const void* copy, int64_t i, int n, float* param) {
  const storage_t* stored = static_cast<const storage_t*>(copy) + i;
  float written[kWordWeights], rounded[kWordWeights];
  for (int j = 0; j < n; ++j) written[j] = stored[j];
  for (int j = 0; j < n; ++j) rounded[j] = static_cast<storage_t>(param[j]);
  for (int j = 0; j < n; ++j)
    param[j] = std::bit_cast<uint32_t>(written[j]) == std::bit_cast<uint32_t>(rounded[j]) ? param[j] : written[j];
}

DSD_INLINE void follow_copy(const void* copy, ScalarType dtype, int64_t i, int n, float* param) {
  if (dtype == ScalarType::BFloat16) return follow_copy_as<BFloat16::storage_t>(copy, i, n, param);
  follow_copy_as<Float16::storage_t>(copy, i, n, param);
}

struct MixedUpdateLoop {
  static DSD_INLINE void block(const MixedPointers& at, int64_t i, int n, const MixedFormats& formats,
                               const SgdOptions<float>& options) {
    float param[kWordWeights], grad[kWordWeights], momentum_buffer[kWordWeights];
    uint8_t keep[kWordWeights];
    uint64_t word = ~uint64_t(0);
    if (at.mask != nullptr) std::memcpy(&word, at.mask + i / 8, sizeof(word));
    unpack_word(word, keep);
    load(at.param, formats.param, i, n, param);
    if (at.copy != nullptr) follow_copy(at.copy, formats.copy, i, n, param);
    load(at.grad, formats.grad, i, n, grad);
    if (at.momentum_buffer != nullptr) {
      load(at.momentum_buffer, formats.momentum_buffer, i, n, momentum_buffer);
      for (int j = 0; j < n; ++j) sgd_update<true>(param[j], grad[j], momentum_buffer[j], keep[j] != 0, options);
      store(at.momentum_buffer, formats.momentum_buffer, i, n, momentum_buffer);
    } else {
      for (int j = 0; j < n; ++j) sgd_update<false>(param[j], grad[j], momentum_buffer[j], keep[j] != 0, options);
    }
    if (at.copy != nullptr) store(at.copy, formats.copy, i, n, param);
    if (formats.stochastic)
      store_stochastically(at.param, formats.param, i, n, param, at.rounding_key);
    else
      store(at.param, formats.param, i, n, param);
  }

  static DSD_INLINE void run(MixedPointers at, int64_t begin, int64_t end, MixedFormats formats,
                             SgdOptions<float> options) {
    int64_t i = begin;
    for (; end - i >= kWordWeights; i += kWordWeights) block(at, i, kWordWeights, formats, options);
    if (i < end) block(at, i, static_cast<int>(end - i), formats, options);
  }
};

}  // namespace dsd::cpu
