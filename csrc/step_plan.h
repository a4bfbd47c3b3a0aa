// The plan that an optimizer keeps of the lists of its steps, as planned_sgd_ takes it.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <span>

#include "ops.h"

namespace dsd {

// One row a parameter: its size and addresses; momentum_buffer and mask are 0 where there is none.
struct PlannedRow {
  int64_t n;
  int64_t param;
  int64_t momentum_buffer;
  int64_t mask;

  friend int64_t size_of(const PlannedRow& row) { return row.n; }
};

inline std::span<const PlannedRow> rows_of(const Tensor& plan) {
  STD_TORCH_CHECK(plan.is_cpu() && plan.is_contiguous() && plan.scalar_type() == torch::headeronly::ScalarType::Long &&
                      plan.numel() % 4 == 0,
                  "dsd_kernels: plan: expected rows of four int64 values on the CPU");
  return {static_cast<const PlannedRow*>(plan.const_data_ptr()), static_cast<size_t>(plan.numel() / 4)};
}

// Whether a gradient is of the first one's dtype, and laid out in memory as its contiguous parameter is.
inline bool is_plain(const Tensor& grad, const Tensor& first, int64_t n) {
  return grad.scalar_type() == first.scalar_type() && grad.layout() == torch::headeronly::Layout::Strided &&
         grad.is_contiguous() && grad.numel() == n;
}

}  // namespace dsd
