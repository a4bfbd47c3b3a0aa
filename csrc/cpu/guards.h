// What guards memory, and no more: the full checks, with their texts, stand once, in dsd_kernels/ops/checks.py.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include "../layout.h"

namespace dsd::cpu {

inline void guard_dense(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cpu(), "dsd_kernels: ", name, ": expected tensors on the CPU");
  STD_TORCH_CHECK(is_dense(tensor), "dsd_kernels: ", name, ": expected tensors without gaps or overlap");
}

inline void guard_like(const char* name, const Tensors& tensors, const Tensors& params) {
  STD_TORCH_CHECK(tensors.size() == params.size(), "dsd_kernels: ", name, ": expected ", params.size(),
                  " tensors, got ", tensors.size());
  for (size_t i = 0; i < params.size(); ++i) {
    guard_dense(name, tensors[i]);
    STD_TORCH_CHECK(tensors[i].numel() == params[i].numel() && tensors[i].scalar_type() == tensors[0].scalar_type(),
                    "dsd_kernels: ", name, "[", i, "]: expected ", params[i].numel(), " elements of the dtype of ",
                    name, "[0]");
  }
}

inline void guard_same_dtype(const char* name, const Tensors& tensors, const Tensors& params) {
  STD_TORCH_CHECK(tensors[0].scalar_type() == params[0].scalar_type(), "dsd_kernels: ", name,
                  ": expected the dtype of the parameters");
}

inline void guard_masks(const char* name, const Tensors& masks, const Tensors& params) {
  STD_TORCH_CHECK(masks.size() == params.size(), "dsd_kernels: ", name, ": expected ", params.size(), " tensors, got ",
                  masks.size());
  for (size_t i = 0; i < params.size(); ++i)
    STD_TORCH_CHECK(masks[i].is_cpu() && masks[i].is_contiguous() &&
                        masks[i].scalar_type() == torch::headeronly::ScalarType::Byte &&
                        masks[i].numel() == packed_bytes(params[i].numel()),
                    "dsd_kernels: ", name, "[", i, "]: expected ", packed_bytes(params[i].numel()),
                    " contiguous bytes on the CPU");
}

inline void guard_k(const Tensor& k, const Tensors& tensors) {
  STD_TORCH_CHECK(k.is_cpu() && k.is_contiguous() && k.numel() == static_cast<int64_t>(tensors.size()) &&
                      k.scalar_type() == torch::headeronly::ScalarType::Long,
                  "dsd_kernels: k: expected ", tensors.size(), " contiguous int64 values on the CPU");
}

}  // namespace dsd::cpu
