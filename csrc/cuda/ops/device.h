// Where a call runs: on the device of its tensors and the stream that torch has current there.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include "../../ops.h"

namespace dsd::cuda {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    // the runtime that is linked into this library has a current device of its own
    STD_TORCH_CHECK(cudaSetDevice(tensor.get_device()) == cudaSuccess, "dsd_kernels: the GPU could not be selected");
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace dsd::cuda
