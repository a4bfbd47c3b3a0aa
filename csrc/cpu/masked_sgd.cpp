// One SGD step over a list of tensors: one pass, 20 bytes and a bit of traffic a weight in float32 with momentum.
#include <cstring>
#include <type_traits>

#include "../ops.h"
#include "../sgd_update.h"
#include "chunks.h"
#include "guards.h"
#include "isa.h"
#include "mixed_sgd.h"
#include "types.h"
#include "words.h"

namespace dsd::cpu {
namespace {

// The weights of one tensor; momentum_buffer and mask are null where there is none.
template <typename storage_t>
struct Pointers {
  storage_t* param;
  const storage_t* grad;
  storage_t* momentum_buffer;
  const uint8_t* mask;
};

template <typename Type, bool has_momentum, bool is_masked>
struct UpdateLoop {
  using storage_t = typename Type::storage_t;
  using compute_t = typename Type::compute_t;

  // Blocks pass through small arrays, one plain loop for each thing done, so that the compiler vectorises them all.
  static DSD_INLINE void block(const Pointers<storage_t>& at, int64_t i, int n, uint64_t word,
                               const SgdOptions<compute_t>& options) {
    compute_t param[kWordWeights], grad[kWordWeights], momentum_buffer[kWordWeights];
    uint8_t keep[kWordWeights];
    for (int j = 0; j < n; ++j) param[j] = at.param[i + j];
    for (int j = 0; j < n; ++j) grad[j] = at.grad[i + j];
    if constexpr (has_momentum)
      for (int j = 0; j < n; ++j) momentum_buffer[j] = at.momentum_buffer[i + j];
    if constexpr (is_masked) unpack_word(word, keep);
    for (int j = 0; j < n; ++j)
      sgd_update<has_momentum>(param[j], grad[j], momentum_buffer[j], !is_masked || keep[j] != 0, options);
    for (int j = 0; j < n; ++j) at.param[i + j] = param[j];
    if constexpr (has_momentum)
      for (int j = 0; j < n; ++j) at.momentum_buffer[i + j] = momentum_buffer[j];
  }

  static DSD_INLINE void run(Pointers<storage_t> at, int64_t begin, int64_t end, SgdOptions<compute_t> options) {
    for (int64_t i = begin; i < end; i += kWordWeights) {
      uint64_t word = 0;
      if constexpr (is_masked) std::memcpy(&word, at.mask + i / 8, sizeof(word));
      if (end - i >= kWordWeights)
        block(at, i, kWordWeights, word, options);
      else
        block(at, i, static_cast<int>(end - i), word, options);
    }
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

double read_scalar(const Tensor& scalar) {
  STD_TORCH_CHECK(scalar.is_cpu() && scalar.numel() == 1, "dsd_kernels: expected one element on the CPU");
  if (scalar.scalar_type() == ScalarType::Double) return *scalar.const_data_ptr<double>();
  return *scalar.const_data_ptr<float>();
}

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
  for (size_t i = 0; i < params.size(); ++i)
    table.push_back({static_cast<storage_t*>(data(params, i)), static_cast<const storage_t*>(grads[i].const_data_ptr()),
                     static_cast<storage_t*>(data(momentum_buffers, i)), mask_data(masks, i)});
  const auto chunks = make_chunks(params);
  for_each_chunk(chunks, [&](int64_t i) { update_chunk<Type>(table[chunks[i].tensor], chunks[i], options); });
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
  if (params.empty() || (found_inf && read_scalar(*found_inf) != 0)) return;
  guard_like("params", params, params);
  guard_like("grads", grads, params);
  guard_apart(grads, params);
  if (!momentum_buffers.empty()) guard_like("momentum_buffers", momentum_buffers, params);
  if (!masks.empty()) guard_masks("masks", masks, params);
  if (!copies.empty()) guard_like("copies", copies, params);
  if (lr_tensor) lr = read_scalar(*lr_tensor);

  const bool is_mixed = !copies.empty() || rounding_seed || dtype_of(grads) != dtype_of(params) ||
                        (!momentum_buffers.empty() && dtype_of(momentum_buffers) != dtype_of(params));
  visit_dtype(dtype_of(params), [&](auto type) {
    using Type = decltype(type);
    using compute_t = typename Type::compute_t;
    SgdOptions<compute_t> options{};
    options.lr = static_cast<compute_t>(lr);
    options.momentum = static_cast<compute_t>(momentum);
    options.undamped = static_cast<compute_t>(1 - dampening);
    options.weight_decay = static_cast<compute_t>(weight_decay);
    options.has_grad_scale = grad_scale.has_value();
    if (grad_scale) options.inverse_grad_scale = static_cast<compute_t>(1 / read_scalar(*grad_scale));
    options.nesterov = nesterov;
    options.maximize = maximize;
    options.mask_momentum = mask_momentum;
    if (!is_mixed) return update_same<Type>(params, grads, momentum_buffers, masks, options);
    if constexpr (std::is_same_v<compute_t, float>)
      update_mixed(params, grads, momentum_buffers, masks, copies, rounding_seed, options);
    else
      STD_TORCH_CHECK(false, "dsd_kernels: expected one dtype for all lists beside float64 parameters");
  });
}

}  // namespace dsd::cpu
