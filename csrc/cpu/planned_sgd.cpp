// The step of masked_sgd.cpp for an optimizer that keeps a plan of its lists: only gradients and numbers go through the
// dispatcher, which costs more for a tensor than a step of a small one does.
#include <vector>

#include "../step_plan.h"
#include "chunks.h"
#include "guards.h"
#include "numbers.h"
#include "types.h"
#include "uniform_sgd.h"

namespace dsd::cpu {
namespace {

// What a step works on; empty where a gradient is not of the kind that the plan is for.
template <typename storage_t>
std::vector<Pointers<storage_t>> follow(std::span<const PlannedRow> rows, const Tensors& grads) {
  std::vector<Pointers<storage_t>> table;
  table.reserve(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!is_plain(grads[i], grads[0], rows[i].n)) return {};
    auto* param = reinterpret_cast<storage_t*>(rows[i].param);
    const auto* grad = static_cast<const storage_t*>(grads[i].const_data_ptr());
    const size_t n_bytes = static_cast<size_t>(rows[i].n) * sizeof(storage_t);
    if ((grad == nullptr && n_bytes != 0) || !is_apart(grad, param, n_bytes, n_bytes)) return {};
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
  const SgdNumbers numbers =
      with_scalars({lr, momentum, dampening, weight_decay, nesterov, maximize, mask_momentum}, lr_tensor, grad_scale);
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
