// The numbers of a step that come as tensors.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../ops.h"
#include "../sgd_update.h"

namespace dsd::cpu {

inline double read_scalar(const Tensor& scalar) {
  STD_TORCH_CHECK(scalar.is_cpu() && scalar.numel() == 1, "dsd_kernels: expected one element on the CPU");
  if (scalar.scalar_type() == torch::headeronly::ScalarType::Double) return *scalar.const_data_ptr<double>();
  return *scalar.const_data_ptr<float>();
}

inline bool is_skipped(const std::optional<Tensor>& found_inf) { return found_inf && read_scalar(*found_inf) != 0; }

inline SgdNumbers with_scalars(SgdNumbers numbers, const std::optional<Tensor>& lr_tensor,
                               const std::optional<Tensor>& grad_scale) {
  if (lr_tensor) numbers.lr = read_scalar(*lr_tensor);
  numbers.has_grad_scale = grad_scale.has_value();
  if (grad_scale) numbers.grad_scale = read_scalar(*grad_scale);
  return numbers;
}

}  // namespace dsd::cpu
