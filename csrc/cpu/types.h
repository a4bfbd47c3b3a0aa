// How each dtype is stored, computed and ordered, and the switch from a run-time dtype to one of these types.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include "../radix_key.h"

namespace dsd::cpu {

struct Float32 : Float32Key {
  using storage_t = float;
  using compute_t = float;
};
struct Float64 : Float64Key {
  using storage_t = double;
  using compute_t = double;
};
// torch's conversions round once, to nearest even
struct BFloat16 : BFloat16Key {
  using storage_t = torch::headeronly::BFloat16;
  using compute_t = float;
};
struct Float16 : Float16Key {
  using storage_t = torch::headeronly::Half;
  using compute_t = float;
};

// Call visitor(Type{}) for the type of a tensor's dtype.
template <typename Visitor>
void visit_dtype(torch::headeronly::ScalarType dtype, const Visitor& visitor) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return visitor(Float32{});
    case ScalarType::Double: return visitor(Float64{});
    case ScalarType::BFloat16: return visitor(BFloat16{});
    case ScalarType::Half: return visitor(Float16{});
    default: STD_TORCH_CHECK(false, "dsd_kernels: expected dtype float32, float64, bfloat16 or float16");
  }
}

}  // namespace dsd::cpu
