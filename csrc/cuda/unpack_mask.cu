// Bits to bool masks: one read of n / 8 bytes, one write of n; no synchronisation.
#include "launch.h"
#include "mask_bits.h"
#include "masks.h"
#include "tables.h"
#include "vectors.h"

namespace dsd::cuda {
namespace {

constexpr int kLanes = kVectorBytes;  // bools of a thread

__global__ void __launch_bounds__(kThreads) unpack_mask_kernel(const Table<MaskRow> __grid_constant__ table) {
  const Place place = locate(table, blockIdx.x);
  const MaskRow& row = table.rows[place.row];
  uint8_t* mask = row.mask + place.first;
  const uint8_t* packed = row.packed + place.first / 8;
  const int n_wide = are_aligned(mask) ? place.count / kLanes * kLanes : 0;
  for (int i = threadIdx.x * kLanes; i < n_wide; i += kThreads * kLanes) {
    const uint32_t bits = packed[i / 8] | packed[i / 8 + 1] << 8;
    Vector<uint32_t, 4> bools;
    for (int j = 0; j < 4; ++j) bools.values[j] = unpack_four(bits >> (4 * j));
    store_vector(reinterpret_cast<uint32_t*>(mask + i), bools);
  }
  for (int i = n_wide + threadIdx.x; i < place.count; i += kThreads) mask[i] = load_mask_bit(packed, i);
}

}  // namespace

void unpack(const std::vector<MaskRow>& rows, cudaStream_t stream) {
  for (const auto& table : make_tables(rows)) launch(stream, table.n_chunks(), unpack_mask_kernel, table);
}

}  // namespace dsd::cuda
