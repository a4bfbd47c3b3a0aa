// The step over lists of one dtype. Reads every weight, gradient, momentum and mask bit once and writes weight and
// momentum once; no synchronisation. The options are branches that a whole launch takes alike, not templates.
#include "formats.h"
#include "launch.h"
#include "step.h"
#include "tables.h"
#include "vectors.h"

namespace dsd::cuda {
namespace {

template <typename Type>
struct Weights {
  using bits_t = typename Type::bits_t;
  using compute_t = typename Type::compute_t;
  static constexpr int kLanes = kVectorBytes / sizeof(bits_t);

  bits_t* param;
  const bits_t* grad;
  bits_t* momentum_buffer;
  const uint8_t* mask;

  __device__ __forceinline__ Weights(const StepRow& row, int64_t first)
      : param(static_cast<bits_t*>(row.param) + first),
        grad(static_cast<const bits_t*>(row.grad) + first),
        momentum_buffer(row.momentum_buffer == nullptr ? nullptr : static_cast<bits_t*>(row.momentum_buffer) + first),
        mask(row.mask == nullptr ? nullptr : row.mask + first / 8) {}

  // Loads stand before all arithmetic, so that they are under way at the same time.
  __device__ __forceinline__ void update_vector(int i, const SgdOptions<compute_t>& options) const {
    auto params = load_vector<kLanes>(param + i);
    const auto grads = load_vector<kLanes>(grad + i);
    const uint32_t keep = load_mask_bits(mask, i);
    if (momentum_buffer != nullptr) {
      auto buffers = load_vector<kLanes>(momentum_buffer + i);
      for (int j = 0; j < kLanes; ++j)
        update<true>(params.values[j], grads.values[j], buffers.values[j], (keep >> j & 1) != 0, options);
      store_vector(momentum_buffer + i, buffers);
    } else {
      bits_t none = 0;
      for (int j = 0; j < kLanes; ++j)
        update<false>(params.values[j], grads.values[j], none, (keep >> j & 1) != 0, options);
    }
    store_vector(param + i, params);
  }

  __device__ __forceinline__ void update_one(int i, const SgdOptions<compute_t>& options) const {
    const bool keep = load_mask_bit(mask, i);
    bits_t none = 0;
    if (momentum_buffer != nullptr)
      update<true>(param[i], grad[i], momentum_buffer[i], keep, options);
    else
      update<false>(param[i], grad[i], none, keep, options);
  }

 private:
  template <bool has_momentum>
  static __device__ __forceinline__ void update(bits_t& param, bits_t grad, bits_t& momentum_buffer, bool keep,
                                                const SgdOptions<compute_t>& options) {
    compute_t new_param = Type::decode(param);
    compute_t new_buffer = Type::decode(momentum_buffer);
    sgd_update<has_momentum>(new_param, Type::decode(grad), new_buffer, keep, options);
    param = Type::encode(new_param);
    if constexpr (has_momentum) momentum_buffer = Type::encode(new_buffer);
  }
};

template <typename Type>
__global__ void __launch_bounds__(kThreads)
    masked_sgd_kernel(const Table<StepRow> __grid_constant__ table, const StepNumbers __grid_constant__ numbers) {
  if (is_skipped(numbers)) return;
  const auto options = make_options<typename Type::compute_t>(numbers);
  const Place place = locate(table, blockIdx.x);
  const Weights<Type> weights(table.rows[place.row], place.first);
  const bool is_wide = are_aligned(weights.param, weights.grad, weights.momentum_buffer, weights.mask);
  constexpr int kLanes = Weights<Type>::kLanes;
  const int n_wide = is_wide ? place.count / kLanes * kLanes : 0;
  for (int i = threadIdx.x * kLanes; i < n_wide; i += kThreads * kLanes) weights.update_vector(i, options);
  for (int i = n_wide + threadIdx.x; i < place.count; i += kThreads) weights.update_one(i, options);
}

}  // namespace

void update(const std::vector<StepRow>& rows, Storage storage, const StepNumbers& numbers, cudaStream_t stream) {
  visit_storage(storage, [&](auto type) {
    for (const auto& table : make_tables(rows))
      launch(stream, table.n_chunks(), masked_sgd_kernel<decltype(type)>, table, numbers);
  });
}

}  // namespace dsd::cuda
