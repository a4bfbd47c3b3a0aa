// What guards memory, and no more: the full checks, with their texts, stand once, in dsd_kernels/ops/checks.py.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include "../ops.h"

namespace dsd::cpu {

inline int64_t packed_bytes(int64_t n) { return (n + 63) / 64 * 8; }

inline void guard_like(const char* name, const Tensors& tensors, const Tensors& params) {
  STD_TORCH_CHECK(tensors.size() == params.size(), "dsd_kernels: ", name, ": expected ", params.size(),
                  " tensors, got ", tensors.size());
  for (size_t i = 0; i < params.size(); ++i)
    STD_TORCH_CHECK(tensors[i].is_cpu() && tensors[i].numel() == params[i].numel() &&
                        tensors[i].scalar_type() == params[0].scalar_type(),
                    "dsd_kernels: ", name, "[", i, "]: expected a CPU tensor of the dtype of params[0] with ",
                    params[i].numel(), " elements");
}

inline void guard_masks(const char* name, const Tensors& masks, const Tensors& params) {
  STD_TORCH_CHECK(masks.size() == params.size(), "dsd_kernels: ", name, ": expected ", params.size(), " tensors, got ",
                  masks.size());
  for (size_t i = 0; i < params.size(); ++i)
    STD_TORCH_CHECK(masks[i].is_cpu() && masks[i].numel() == packed_bytes(params[i].numel()), "dsd_kernels: ", name,
                    "[", i, "]: expected ", packed_bytes(params[i].numel()), " bytes on the CPU");
}

inline void guard_k(const Tensor& k, const Tensors& tensors) {
  STD_TORCH_CHECK(k.is_cpu() && k.numel() == static_cast<int64_t>(tensors.size()) &&
                      k.scalar_type() == torch::headeronly::ScalarType::Long,
                  "dsd_kernels: k: expected ", tensors.size(), " int64 values on the CPU");
}

}  // namespace dsd::cpu
