// The step over lists of different dtypes, with copies, or rounded stochastically, in float32 arithmetic. Storages are
// branches that a whole launch takes alike, so that the mixtures are no product of templates. Reads and writes each
// value once; no synchronisation.
#include "../stochastic_rounding.h"
#include "formats.h"
#include "launch.h"
#include "step.h"
#include "tables.h"
#include "vectors.h"

namespace dsd::cuda {
namespace {

constexpr int kLanes = 4;  // sixteen bytes of float32, eight of the halves

template <typename Type>
__device__ __forceinline__ void decode(const void* from, int64_t i, int n, float* values) {
  const auto* stored = static_cast<const typename Type::bits_t*>(from) + i;
  if (n == kLanes) {
    const auto vector = load_vector<kLanes>(stored);
    for (int j = 0; j < kLanes; ++j) values[j] = Type::decode(vector.values[j]);
  } else {
    values[0] = Type::decode(*stored);
  }
}

template <typename Type>
__device__ __forceinline__ void encode(void* to, int64_t i, int n, const float* values) {
  auto* stored = static_cast<typename Type::bits_t*>(to) + i;
  if (n == kLanes) {
    Vector<typename Type::bits_t, kLanes> vector;
    for (int j = 0; j < kLanes; ++j) vector.values[j] = Type::encode(values[j]);
    store_vector(stored, vector);
  } else {
    *stored = Type::encode(values[0]);
  }
}

// n is kLanes, or 1: the last weights of a tensor, or all of one at an odd address.
__device__ __forceinline__ void load(const void* from, Storage storage, int64_t i, int n, float* values) {
  if (storage == Storage::float32) return decode<Float32>(from, i, n, values);
  if (storage == Storage::bfloat16) return decode<BFloat16>(from, i, n, values);
  decode<Float16>(from, i, n, values);
}

__device__ __forceinline__ void store(void* to, Storage storage, int64_t i, int n, const float* values) {
  if (storage == Storage::float32) return encode<Float32>(to, i, n, values);
  if (storage == Storage::bfloat16) return encode<BFloat16>(to, i, n, values);
  encode<Float16>(to, i, n, values);
}

__device__ __forceinline__ void store_stochastically(void* to, Storage storage, int64_t i, int n, const float* values,
                                                     uint32_t key) {
  Vector<uint16_t, kLanes> rounded;
  for (int j = 0; j < n; ++j) {
    const uint32_t noise = rounding_noise(key, static_cast<uint32_t>(i) + j);
    rounded.values[j] = storage == Storage::bfloat16 ? round_to_bfloat16_stochastically(values[j], noise)
                                                     : round_to_float16_stochastically(values[j], noise);
  }
  uint16_t* stored = static_cast<uint16_t*>(to) + i;
  if (n == kLanes)
    store_vector(stored, rounded);
  else
    *stored = rounded.values[0];
}

// Take the copy's value where that is not the rounded parameter: somebody else wrote it.
__device__ __forceinline__ void follow_copy(const void* copy, Storage storage, int64_t i, int n, float* param) {
  float written[kLanes];
  load(copy, storage, i, n, written);
  for (int j = 0; j < n; ++j) {
    const float rounded = storage == Storage::bfloat16 ? BFloat16::decode(BFloat16::encode(param[j]))
                                                       : Float16::decode(Float16::encode(param[j]));
    if (bits_as<uint32_t>(written[j]) != bits_as<uint32_t>(rounded)) param[j] = written[j];
  }
}

template <int n>
__device__ __forceinline__ void update(const StepRow& row, int64_t i, const StepFormats& formats, uint32_t key,
                                       const SgdOptions<float>& options) {
  float param[kLanes], grad[kLanes], momentum_buffer[kLanes];
  const uint32_t keep = n == kLanes ? load_mask_bits(row.mask, i) : load_mask_bit(row.mask, i);
  load(row.param, formats.param, i, n, param);
  load(row.grad, formats.grad, i, n, grad);
  if (row.copy != nullptr) follow_copy(row.copy, formats.copy, i, n, param);
  if (row.momentum_buffer != nullptr) {
    load(row.momentum_buffer, formats.momentum_buffer, i, n, momentum_buffer);
    for (int j = 0; j < n; ++j) sgd_update<true>(param[j], grad[j], momentum_buffer[j], (keep >> j & 1) != 0, options);
    store(row.momentum_buffer, formats.momentum_buffer, i, n, momentum_buffer);
  } else {
    for (int j = 0; j < n; ++j) sgd_update<false>(param[j], grad[j], momentum_buffer[j], (keep >> j & 1) != 0, options);
  }
  if (row.copy != nullptr) store(row.copy, formats.copy, i, n, param);
  if (formats.rounding_seed != nullptr)
    store_stochastically(row.param, formats.param, i, n, param, key);
  else
    store(row.param, formats.param, i, n, param);
}

__global__ void __launch_bounds__(kThreads)
    mixed_sgd_kernel(const Table<StepRow> __grid_constant__ table, const StepNumbers __grid_constant__ numbers,
                     const StepFormats __grid_constant__ formats) {
  if (is_skipped(numbers)) return;
  const auto options = make_options<float>(numbers);
  const Place place = locate(table, blockIdx.x);
  const StepRow& row = table.rows[place.row];
  uint32_t key = 0;
  if (formats.rounding_seed != nullptr)
    key = rounding_key(static_cast<uint64_t>(*formats.rounding_seed), table.first_tensor + place.row);
  const bool is_wide = are_aligned(row.param, row.grad, row.momentum_buffer, row.copy, row.mask);
  const int n_wide = is_wide ? place.count / kLanes * kLanes : 0;
  for (int i = threadIdx.x * kLanes; i < n_wide; i += kThreads * kLanes)
    update<kLanes>(row, place.first + i, formats, key, options);
  for (int i = n_wide + threadIdx.x; i < place.count; i += kThreads)
    update<1>(row, place.first + i, formats, key, options);
}

}  // namespace

void update_mixed(const std::vector<StepRow>& rows, const StepFormats& formats, const StepNumbers& numbers,
                  cudaStream_t stream) {
  for (const auto& table : make_tables(rows))
    launch(stream, table.n_chunks(), mixed_sgd_kernel, table, numbers, formats);
}

}  // namespace dsd::cuda
