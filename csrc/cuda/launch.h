// How every kernel is launched: blocks of one size on the caller's stream, errors as exceptions. No torch header is
// seen by nvcc: its part knows addresses and streams only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace dsd::cuda {

constexpr int kThreads = 256;
constexpr int kWarpThreads = 32;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename... Parameters>
void launch(cudaStream_t stream, int64_t n_blocks, void (*kernel)(Parameters...),
            const std::type_identity_t<Parameters>&... arguments) {
  if (n_blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(n_blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("dsd_kernels: a CUDA kernel could not be launched: ") +
                             cudaGetErrorString(error));
}

}  // namespace dsd::cuda
