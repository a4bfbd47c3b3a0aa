// bool masks to bits: one read of n bytes, one write of n / 8; no synchronisation.
#include "launch.h"
#include "mask_bits.h"
#include "masks.h"
#include "tables.h"
#include "vectors.h"

namespace dsd::cuda {
namespace {

constexpr int kWordWeights = 32;

// The word of 32 bools that all exist.
__device__ __forceinline__ uint32_t pack_word(const uint8_t* mask) {
  uint32_t word = 0;
  for (int half = 0; half < 2; ++half) {
    const auto four = load_vector<4>(reinterpret_cast<const uint32_t*>(mask) + 4 * half);
    for (int j = 0; j < 4; ++j) word |= pack_four(four.values[j]) << (16 * half + 4 * j);
  }
  return word;
}

// Of n bools, at any address.
__device__ __forceinline__ uint32_t pack_bools(const uint8_t* mask, int n) {
  uint32_t word = 0;
  for (int j = 0; j < n; ++j) word |= static_cast<uint32_t>(mask[j] != 0) << j;
  return word;
}

// A padding word, where a mask ends in the lower half of a 64-bit word, packs no bools.
__global__ void __launch_bounds__(kThreads) pack_mask_kernel(const Table<MaskRow> __grid_constant__ table) {
  const Place place = locate(table, blockIdx.x);
  const MaskRow& row = table.rows[place.row];
  const uint8_t* mask = row.mask + place.first;
  uint32_t* packed = reinterpret_cast<uint32_t*>(row.packed + place.first / 8);
  const bool is_wide = are_aligned(mask);
  const int n_words = (place.count + 63) / 64 * 2;
  for (int word = threadIdx.x; word < n_words; word += kThreads) {
    const int left = place.count - word * kWordWeights;
    packed[word] = is_wide && left >= kWordWeights
                       ? pack_word(mask + word * kWordWeights)
                       : pack_bools(mask + word * kWordWeights, left < kWordWeights ? left : kWordWeights);
  }
}

}  // namespace

void pack(const std::vector<MaskRow>& rows, cudaStream_t stream) {
  for (const auto& table : make_tables(rows)) launch(stream, table.n_chunks(), pack_mask_kernel, table);
}

}  // namespace dsd::cuda
