// What guards memory, and no more: the full checks, with their texts, stand once, in dsd_kernels/ops/checks.py.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include "../../layout.h"
#include "../formats.h"

namespace dsd::cuda {

using torch::headeronly::ScalarType;

inline Storage storage_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Storage::float32;
    case ScalarType::Double: return Storage::float64;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: STD_TORCH_CHECK(false, "dsd_kernels: expected dtype float32, float64, bfloat16 or float16");
  }
}

inline bool is_beside(const Tensor& tensor, const Tensor& first) {
  return tensor.is_cuda() && tensor.get_device() == first.get_device();
}

// On the GPU of `params`, and as each of these is: dense, of its size, and all of one dtype.
inline void guard_like(const char* name, const Tensors& tensors, const Tensors& params) {
  STD_TORCH_CHECK(tensors.size() == params.size(), "dsd_kernels: ", name, ": expected ", params.size(),
                  " tensors, got ", tensors.size());
  for (size_t i = 0; i < params.size(); ++i)
    STD_TORCH_CHECK(is_beside(tensors[i], params[0]) && is_dense(tensors[i]) &&
                        tensors[i].numel() == params[i].numel() && tensors[i].scalar_type() == tensors[0].scalar_type(),
                    "dsd_kernels: ", name, "[", i, "]: expected ", params[i].numel(),
                    " elements without gaps or overlap, of one dtype on one GPU");
}

inline void guard_masks(const char* name, const Tensors& masks, const Tensors& params) {
  STD_TORCH_CHECK(masks.size() == params.size(), "dsd_kernels: ", name, ": expected ", params.size(), " tensors, got ",
                  masks.size());
  for (size_t i = 0; i < params.size(); ++i)
    STD_TORCH_CHECK(is_beside(masks[i], params[i]) && masks[i].is_contiguous() &&
                        masks[i].scalar_type() == ScalarType::Byte &&
                        masks[i].numel() == packed_bytes(params[i].numel()),
                    "dsd_kernels: ", name, "[", i, "]: expected ", packed_bytes(params[i].numel()),
                    " contiguous bytes on the GPU of its tensor");
}

inline void guard_scalar(const char* name, const Tensor& scalar, const Tensor& first) {
  STD_TORCH_CHECK(is_beside(scalar, first) && scalar.numel() == 1, "dsd_kernels: ", name,
                  ": expected one element on the GPU of the tensors");
}

}  // namespace dsd::cuda
