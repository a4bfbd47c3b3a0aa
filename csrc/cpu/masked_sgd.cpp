// One SGD step over a list of tensors: one pass, 20 bytes and a bit of traffic a weight in float32 with momentum.
#include <type_traits>

#include "../ops.h"
#include "chunks.h"
#include "guards.h"
#include "isa.h"
#include "mixed_sgd.h"
#include "numbers.h"
#include "types.h"
#include "uniform_sgd.h"

namespace dsd::cpu {
namespace {

int64_t read_seed(const Tensor& seed) {
  STD_TORCH_CHECK(seed.is_cpu() && seed.numel() == 1 && seed.scalar_type() == ScalarType::Long,
                  "dsd_kernels: rounding_seed: expected one int64 element on the CPU");
  return *seed.const_data_ptr<int64_t>();
}

void* data(const Tensors& tensors, size_t i) { return tensors.empty() ? nullptr : tensors[i].mutable_data_ptr(); }

const uint8_t* mask_data(const Tensors& masks, size_t i) {
  return masks.empty() ? nullptr : static_cast<const uint8_t*>(masks[i].const_data_ptr());
}

template <typename Type>
void update_same(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, const Tensors& masks,
                 const SgdOptions<typename Type::compute_t>& options) {
  using storage_t = typename Type::storage_t;
  std::vector<Pointers<storage_t>> table;
  table.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    table.push_back({static_cast<storage_t*>(data(params, i)), static_cast<const storage_t*>(grads[i].const_data_ptr()),
                     static_cast<storage_t*>(data(momentum_buffers, i)), mask_data(masks, i)});
    const size_t n_bytes = static_cast<size_t>(params[i].numel()) * sizeof(storage_t);
    STD_TORCH_CHECK(is_apart(table[i].grad, table[i].param, n_bytes, n_bytes), "dsd_kernels: grads[", i,
                    "] shares memory with its parameter; clone() it");
  }
  update_all<Type>(table, make_chunks(params), options);
}

ScalarType dtype_of(const Tensors& tensors) { return tensors.empty() ? ScalarType::Float : tensors[0].scalar_type(); }

void update_mixed(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, const Tensors& masks,
                  const Tensors& copies, const std::optional<Tensor>& rounding_seed, const SgdOptions<float>& options) {
  const MixedFormats formats{dtype_of(params), dtype_of(grads), dtype_of(momentum_buffers), dtype_of(copies),
                             rounding_seed.has_value()};
  for (const ScalarType dtype : {formats.grad, formats.momentum_buffer, formats.copy})
    STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half,
                    "dsd_kernels: expected dtype float32, bfloat16 or float16 beside a parameter of one of these");
  STD_TORCH_CHECK(!formats.stochastic || formats.param != ScalarType::Float,
                  "dsd_kernels: rounding_seed: expected none for float32 parameters");
  const uint64_t seed = formats.stochastic ? static_cast<uint64_t>(read_seed(*rounding_seed)) : 0;
  std::vector<MixedPointers> table;
  table.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i)
    table.push_back({data(params, i), grads[i].const_data_ptr(), data(momentum_buffers, i), data(copies, i),
                     mask_data(masks, i), rounding_key(seed, static_cast<uint32_t>(i))});
  const auto chunks = make_chunks(params);
  for_each_chunk(chunks, [&](int64_t i) {
    Multiversioned<MixedUpdateLoop>::run(table[chunks[i].tensor], chunks[i].begin, chunks[i].end, formats, options);
  });
}

}  // namespace

void masked_sgd_(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, const Tensors& masks,
                 const Tensors& copies, double lr, double momentum, double dampening, double weight_decay,
                 bool nesterov, bool maximize, bool mask_momentum, const std::optional<Tensor>& lr_tensor,
                 const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                 const std::optional<Tensor>& rounding_seed) {
  if (params.empty() || is_skipped(found_inf)) return;
  guard_like("params", params, params);
  guard_like("grads", grads, params);
  if (!momentum_buffers.empty()) guard_like("momentum_buffers", momentum_buffers, params);
  if (!masks.empty()) guard_masks("masks", masks, params);
  if (!copies.empty()) guard_like("copies", copies, params);
  const SgdNumbers numbers =
      with_scalars({lr, momentum, dampening, weight_decay, nesterov, maximize, mask_momentum}, lr_tensor, grad_scale);

  const bool is_mixed = !copies.empty() || rounding_seed || dtype_of(grads) != dtype_of(params) ||
                        (!momentum_buffers.empty() && dtype_of(momentum_buffers) != dtype_of(params));
  visit_dtype(dtype_of(params), [&](auto type) {
    using Type = decltype(type);
    using compute_t = typename Type::compute_t;
    const auto options = make_options<compute_t>(numbers);
    if (!is_mixed) return update_same<Type>(params, grads, momentum_buffers, masks, options);
    if constexpr (std::is_same_v<compute_t, float>)
      update_mixed(params, grads, momentum_buffers, masks, copies, rounding_seed, options);
    else
      STD_TORCH_CHECK(false, "dsd_kernels: expected one dtype for all lists beside float64 parameters");
  });
}

}  // namespace dsd::cpu
