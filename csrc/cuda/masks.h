// The kernels between bool masks and bits, as the rest of the library calls them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

namespace dsd::cuda {

struct MaskRow {
  static constexpr int kChunkWeights = 16384;
  int64_t n;
  uint8_t* mask;    // n bools
  uint8_t* packed;  // one bit each, in whole 64-bit words
};

// One launch for a table of rows.
void pack(const std::vector<MaskRow>& rows, cudaStream_t stream);
void unpack(const std::vector<MaskRow>& rows, cudaStream_t stream);

}  // namespace dsd::cuda
