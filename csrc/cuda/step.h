// What the kernels of a step are told: the rows of its table, and its numbers, some of which lie on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "../sgd_update.h"
#include "formats.h"

namespace dsd::cuda {

// momentum_buffer, copy and mask are null where there is none.
struct StepRow {
  static constexpr int kChunkWeights = 4096;
  int64_t n;
  void* param;
  const void* grad;
  void* momentum_buffer;
  void* copy;
  const uint8_t* mask;
};

// One element on the device, if there is any.
struct DeviceScalar {
  const void* address;
  bool is_double;

  DSD_INLINE double read() const {
    return is_double ? *static_cast<const double*>(address) : *static_cast<const float*>(address);
  }
};

// `given`, but for what lies on the device.
struct StepNumbers {
  SgdNumbers given;
  DeviceScalar lr_tensor;
  DeviceScalar grad_scale;
  DeviceScalar found_inf;
};

// How the lists of a step are stored, and whether parameters are rounded stochastically, by the seed at an address.
struct StepFormats {
  Storage param;
  Storage grad;
  Storage momentum_buffer;
  Storage copy;
  const int64_t* rounding_seed;
};

DSD_INLINE bool is_skipped(const StepNumbers& numbers) {
  return numbers.found_inf.address != nullptr && numbers.found_inf.read() != 0;
}

template <typename compute_t>
DSD_INLINE SgdOptions<compute_t> make_options(const StepNumbers& numbers) {
  SgdNumbers found = numbers.given;
  if (numbers.lr_tensor.address != nullptr) found.lr = numbers.lr_tensor.read();
  found.has_grad_scale = numbers.grad_scale.address != nullptr;
  if (found.has_grad_scale) found.grad_scale = numbers.grad_scale.read();
  return dsd::make_options<compute_t>(found);
}

// One launch for a table of rows. All lists of one storage; and lists of different ones, or rounded stochastically.
void update(const std::vector<StepRow>& rows, Storage storage, const StepNumbers& numbers, cudaStream_t stream);
void update_mixed(const std::vector<StepRow>& rows, const StepFormats& formats, const StepNumbers& numbers,
                  cudaStream_t stream);

}  // namespace dsd::cuda
