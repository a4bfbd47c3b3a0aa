// The step of masked_sgd.cpp for an optimizer that keeps a plan of its lists: only gradients and numbers go through the
// dispatcher, which costs more for a tensor than a step of a small one does.
#include <span>
#include <vector>

#include "../ops.h"
#include "chunks.h"
#include "guards.h"
#include "numbers.h"
#include "types.h"
#include "uniform_sgd.h"

namespace dsd::cpu {
namespace {

using torch::headeronly::ScalarType;

// One row a parameter: its size and addresses; momentum_buffer and mask are 0 where there is none.
struct Row {
  int64_t n;
  int64_t param;
  int64_t momentum_buffer;
  int64_t mask;
};

int64_t size_of(const Row& row) { return row.n; }

std::span<const Row> rows_of(const Tensor& plan) {
  STD_TORCH_CHECK(
      plan.is_cpu() && plan.is_contiguous() && plan.scalar_type() == ScalarType::Long && plan.numel() % 4 == 0,
      "dsd_kernels: plan: expected rows of four int64 values");
  return {static_cast<const Row*>(plan.const_data_ptr()), static_cast<size_t>(plan.numel() / 4)};
}

// Whether the gradient is laid out in memory as its contiguous parameter is.
bool is_plain(const Tensor& grad, ScalarType dtype, int64_t n) {
  return grad.scalar_type() == dtype && grad.layout() == torch::headeronly::Layout::Strided && grad.is_contiguous() &&
         grad.numel() == n;
}

// What a step works on; empty where a gradient is not of the kind that the plan is for.
template <typename storage_t>
std::vector<Pointers<storage_t>> follow(std::span<const Row> rows, const Tensors& grads) {
  std::vector<Pointers<storage_t>> table;
  const ScalarType dtype = grads[0].scalar_type();
  table.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!is_plain(grads[i], dtype, rows[i].n)) return {};
    auto* param = reinterpret_cast<storage_t*>(rows[i].param);
    const auto* grad = static_cast<const storage_t*>(grads[i].const_data_ptr());
    if ((grad == nullptr && rows[i].n != 0) || !is_apart<storage_t>(grad, param, rows[i].n)) return {};
    table.push_back({param, grad, reinterpret_cast<storage_t*>(rows[i].momentum_buffer),
                     reinterpret_cast<const uint8_t*>(rows[i].mask)});
  }
  return table;
}

}  // namespace

bool planned_sgd_(const Tensor& plan, const Tensors& grads, bool dry_run, double lr, double momentum, double dampening,
                  double weight_decay, bool nesterov, bool maximize, bool mask_momentum,
                  const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                  const std::optional<Tensor>& found_inf) {
  const auto rows = rows_of(plan);
  if (rows.empty() || grads.size() != rows.size()) return false;
  const Numbers numbers{lr,       momentum,      dampening, weight_decay, nesterov,
                        maximize, mask_momentum, lr_tensor, grad_scale};
  bool holds = false;
  visit_dtype(grads[0].scalar_type(), [&](auto type) {
    using Type = decltype(type);
    const auto table = follow<typename Type::storage_t>(rows, grads);
    holds = !table.empty();
    if (!holds || dry_run || is_skipped(found_inf)) return;
    update_all<Type>(table, make_chunks(rows), make_options<typename Type::compute_t>(numbers));
  });
  return holds;
}

}  // namespace dsd::cpu
