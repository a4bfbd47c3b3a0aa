// The ops as the extensions implement them; schemas, checks and docs are in dsd_kernels/ops/__init__.py. An op that a
// device lacks is declared for it, and not registered.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace dsd {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

namespace cpu {
#include "op_declarations.h"
}
namespace cuda {
#include "op_declarations.h"
}

}  // namespace dsd
