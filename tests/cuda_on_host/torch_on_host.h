// Included before the ops of the CUDA extension, to let them take tensors on the CPU for tensors on a GPU.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

struct GuardOfNoDevice {
  explicit GuardOfNoDevice(int32_t) {}
};
namespace torch::stable::accelerator {
using ::GuardOfNoDevice;
}

inline AOTITorchError no_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

#define CUDA CPU
#define is_cuda is_cpu
#define DeviceGuard GuardOfNoDevice
#define aoti_torch_device_type_cuda aoti_torch_device_type_cpu
#define aoti_torch_get_current_cuda_stream no_stream
