// The numbers of a step, from the arguments of an op to the dtype of the arithmetic.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../ops.h"
#include "../sgd_update.h"

namespace dsd::cpu {

struct Numbers {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  bool nesterov;
  bool maximize;
  bool mask_momentum;
  const std::optional<Tensor>& lr_tensor;
  const std::optional<Tensor>& grad_scale;
};

inline double read_scalar(const Tensor& scalar) {
  STD_TORCH_CHECK(scalar.is_cpu() && scalar.numel() == 1, "dsd_kernels: expected one element on the CPU");
  if (scalar.scalar_type() == torch::headeronly::ScalarType::Double) return *scalar.const_data_ptr<double>();
  return *scalar.const_data_ptr<float>();
}

inline bool is_skipped(const std::optional<Tensor>& found_inf) { return found_inf && read_scalar(*found_inf) != 0; }

template <typename compute_t>
SgdOptions<compute_t> make_options(const Numbers& numbers) {
  SgdOptions<compute_t> options{};
  options.lr = static_cast<compute_t>(numbers.lr_tensor ? read_scalar(*numbers.lr_tensor) : numbers.lr);
  options.momentum = static_cast<compute_t>(numbers.momentum);
  options.undamped = static_cast<compute_t>(1 - numbers.dampening);
  options.weight_decay = static_cast<compute_t>(numbers.weight_decay);
  options.has_grad_scale = numbers.grad_scale.has_value();
  if (numbers.grad_scale) options.inverse_grad_scale = static_cast<compute_t>(1 / read_scalar(*numbers.grad_scale));
  options.nesterov = numbers.nesterov;
  options.maximize = numbers.maximize;
  options.mask_momentum = numbers.mask_momentum;
  return options;
}

}  // namespace dsd::cpu
