// How tensors lie in memory; on whatever device.
#pragma once

#include "ops.h"

namespace dsd {

inline int64_t packed_bytes(int64_t n) { return (n + 63) / 64 * 8; }

// Whether every element has an address of its own in one block: what can be read through a flat pointer.
inline bool is_dense(const Tensor& tensor) {
  if (tensor.numel() == 0 || tensor.is_contiguous()) return true;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t block = 1;
  for (size_t i = 0; i < sizes.size(); ++i)
    for (size_t dim = 0; dim < sizes.size(); ++dim)
      if (sizes[dim] != 1 && strides[dim] == block) {
        block *= sizes[dim];
        break;
      }
  return block == tensor.numel();
}

// A gradient may be its parameter; one that lies shifted over it would be read after it was written.
inline bool is_apart(const void* grad, const void* param, size_t grad_bytes, size_t param_bytes) {
  const auto* first = static_cast<const char*>(grad);
  const auto* second = static_cast<const char*>(param);
  return first == second || first + grad_bytes <= second || second + param_bytes <= first;
}

}  // namespace dsd
