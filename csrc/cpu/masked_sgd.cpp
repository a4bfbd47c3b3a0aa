// One SGD step over a list of tensors: one pass, 20 bytes and a bit of traffic a weight in float32 with momentum.
#include <cstring>

#include "../ops.h"
#include "../sgd_update.h"
#include "chunks.h"
#include "guards.h"
#include "isa.h"
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
  if (scalar.scalar_type() == torch::headeronly::ScalarType::Double) return *scalar.const_data_ptr<double>();
  return *scalar.const_data_ptr<float>();
}

template <typename storage_t>
std::vector<Pointers<storage_t>> pointers(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
                                          const Tensors& masks) {
  std::vector<Pointers<storage_t>> table;
  table.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i)
    table.push_back(
        {static_cast<storage_t*>(params[i].mutable_data_ptr()),
         static_cast<const storage_t*>(grads[i].const_data_ptr()),
         momentum_buffers.empty() ? nullptr : static_cast<storage_t*>(momentum_buffers[i].mutable_data_ptr()),
         masks.empty() ? nullptr : static_cast<const uint8_t*>(masks[i].const_data_ptr())});
  return table;
}

}  // namespace

void masked_sgd_(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, const Tensors& masks,
                 double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                 bool mask_momentum, const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                 const std::optional<Tensor>& found_inf) {
  if (params.empty() || (found_inf && read_scalar(*found_inf) != 0)) return;
  guard_like("params", params, params);
  guard_like("grads", grads, params);
  if (!momentum_buffers.empty()) guard_like("momentum_buffers", momentum_buffers, params);
  if (!masks.empty()) guard_masks("masks", masks, params);
  if (lr_tensor) lr = read_scalar(*lr_tensor);

  visit_dtype(params[0].scalar_type(), [&](auto type) {
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
    const auto table = pointers<typename Type::storage_t>(params, grads, momentum_buffers, masks);
    const auto chunks = make_chunks(params);
    for_each_chunk(chunks, [&](int64_t i) { update_chunk<Type>(table[chunks[i].tensor], chunks[i], options); });
  });
}

}  // namespace dsd::cpu
