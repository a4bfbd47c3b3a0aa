// One SGD step over a list of tensors, and the same with a plan of its lists kept by the caller.
#include "../../step_plan.h"
#include "../step.h"
#include "device.h"
#include "guards.h"

namespace dsd::cuda {
namespace {

DeviceScalar device_scalar(const char* name, const std::optional<Tensor>& scalar, const Tensor& first) {
  if (!scalar) return {};
  guard_scalar(name, *scalar, first);
  STD_TORCH_CHECK(scalar->scalar_type() == ScalarType::Double || scalar->scalar_type() == ScalarType::Float,
                  "dsd_kernels: ", name, ": expected dtype float32 or float64");
  return {scalar->const_data_ptr(), scalar->scalar_type() == ScalarType::Double};
}

StepNumbers make_numbers(const SgdNumbers& given, const std::optional<Tensor>& lr_tensor,
                         const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                         const Tensor& first) {
  return {given, device_scalar("lr_tensor", lr_tensor, first), device_scalar("grad_scale", grad_scale, first),
          device_scalar("found_inf", found_inf, first)};
}

void* data(const Tensors& tensors, size_t i) { return tensors.empty() ? nullptr : tensors[i].mutable_data_ptr(); }

std::vector<StepRow> make_rows(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
                               const Tensors& masks, const Tensors& copies) {
  std::vector<StepRow> rows;
  rows.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const auto* mask = static_cast<const uint8_t*>(masks.empty() ? nullptr : masks[i].const_data_ptr());
    rows.push_back({params[i].numel(), data(params, i), grads[i].const_data_ptr(), data(momentum_buffers, i),
                    data(copies, i), mask});
    const size_t n = static_cast<size_t>(rows[i].n);
    STD_TORCH_CHECK(is_apart(rows[i].grad, rows[i].param, n * grads[i].element_size(), n * params[i].element_size()),
                    "dsd_kernels: grads[", i, "] shares memory with its parameter; clone() it");
  }
  return rows;
}

Storage storage_of_list(const Tensors& tensors) { return tensors.empty() ? Storage::float32 : storage_of(tensors[0]); }

bool is_half(Storage storage) { return storage == Storage::bfloat16 || storage == Storage::float16; }

StepFormats make_formats(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
                         const Tensors& copies, const std::optional<Tensor>& rounding_seed) {
  const auto* seed = static_cast<const int64_t*>(rounding_seed ? rounding_seed->const_data_ptr() : nullptr);
  const StepFormats formats{storage_of_list(params), storage_of_list(grads), storage_of_list(momentum_buffers),
                            storage_of_list(copies), seed};
  for (const Storage storage : {formats.param, formats.grad, formats.momentum_buffer, formats.copy})
    STD_TORCH_CHECK(storage != Storage::float64, "dsd_kernels: expected one dtype for all lists beside float64");
  STD_TORCH_CHECK(copies.empty() || is_half(formats.copy), "dsd_kernels: copies: expected bfloat16 or float16");
  STD_TORCH_CHECK(!rounding_seed || (is_half(formats.param) && rounding_seed->scalar_type() == ScalarType::Long),
                  "dsd_kernels: rounding_seed: expected an int64 seed beside bfloat16 or float16 parameters");
  return formats;
}

// What a step works on; empty where a gradient is not of the kind that the plan is for.
std::vector<StepRow> follow(std::span<const PlannedRow> plan, const Tensors& grads) {
  std::vector<StepRow> rows;
  rows.reserve(plan.size());
  for (size_t i = 0; i < plan.size(); ++i) {
    const auto& [n, param, momentum_buffer, mask] = plan[i];
    if (!is_beside(grads[i], grads[0]) || !is_plain(grads[i], grads[0], n)) return {};
    const void* grad = grads[i].const_data_ptr();
    const size_t n_bytes = static_cast<size_t>(n) * grads[i].element_size();
    if ((grad == nullptr && n != 0) || !is_apart(grad, reinterpret_cast<void*>(param), n_bytes, n_bytes)) return {};
    rows.push_back({n, reinterpret_cast<void*>(param), grad, reinterpret_cast<void*>(momentum_buffer), nullptr,
                    reinterpret_cast<const uint8_t*>(mask)});
  }
  return rows;
}

}  // namespace

void masked_sgd_(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers, const Tensors& masks,
                 const Tensors& copies, double lr, double momentum, double dampening, double weight_decay,
                 bool nesterov, bool maximize, bool mask_momentum, const std::optional<Tensor>& lr_tensor,
                 const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf,
                 const std::optional<Tensor>& rounding_seed) {
  if (params.empty()) return;
  guard_like("params", params, params);
  guard_like("grads", grads, params);
  if (!momentum_buffers.empty()) guard_like("momentum_buffers", momentum_buffers, params);
  if (!masks.empty()) guard_masks("masks", masks, params);
  if (!copies.empty()) guard_like("copies", copies, params);
  if (rounding_seed) guard_scalar("rounding_seed", *rounding_seed, params[0]);
  const auto rows = make_rows(params, grads, momentum_buffers, masks, copies);
  const StepNumbers numbers = make_numbers({lr, momentum, dampening, weight_decay, nesterov, maximize, mask_momentum},
                                           lr_tensor, grad_scale, found_inf, params[0]);
  const OnDeviceOf device(params[0]);

  const Storage storage = storage_of_list(params);
  const bool is_mixed = !copies.empty() || rounding_seed || storage_of_list(grads) != storage ||
                        (!momentum_buffers.empty() && storage_of_list(momentum_buffers) != storage);
  if (!is_mixed) return update(rows, storage, numbers, device.stream());
  const StepFormats formats = make_formats(params, grads, momentum_buffers, copies, rounding_seed);
  update_mixed(rows, formats, numbers, device.stream());
}

bool planned_sgd_(const Tensor& plan, const Tensors& grads, bool dry_run, double lr, double momentum, double dampening,
                  double weight_decay, bool nesterov, bool maximize, bool mask_momentum,
                  const std::optional<Tensor>& lr_tensor, const std::optional<Tensor>& grad_scale,
                  const std::optional<Tensor>& found_inf) {
  const auto planned = rows_of(plan);
  if (planned.empty() || grads.size() != planned.size()) return false;
  const auto rows = follow(planned, grads);
  if (rows.empty() || dry_run) return !rows.empty();
  const StepNumbers numbers = make_numbers({lr, momentum, dampening, weight_decay, nesterov, maximize, mask_momentum},
                                           lr_tensor, grad_scale, found_inf, grads[0]);
  const OnDeviceOf device(grads[0]);
  update(rows, storage_of(grads[0]), numbers, device.stream());
  return true;
}

}  // namespace dsd::cuda
