// The kernel of magnitude_histogram: one read of the weights. No synchronisation.
#include "keys.h"
#include "launch.h"
#include "selection.h"

namespace dsd::cuda {
namespace {

// Each warp has counts of its own: of most digits, most weights have one of a few values.
template <typename Type>
__global__ void __launch_bounds__(kThreads)
    magnitude_histogram_kernel(const Table<SelectRow> __grid_constant__ table, const int64_t* prefixes, const int shift,
                               unsigned long long* histograms) {
  using bits_t = typename Type::bits_t;
  __shared__ uint32_t counts[kWarps][kCountedValues];
  for (int value = threadIdx.x; value < kWarps * kCountedValues; value += kThreads)
    counts[value / kCountedValues][value % kCountedValues] = 0;
  __syncthreads();
  const Place place = locate(table, blockIdx.x);
  const int64_t index = table.first_tensor + place.row;
  const auto prefix = static_cast<bits_t>(prefixes[index]);
  uint32_t* own = counts[threadIdx.x / kWarpThreads];
  for_each_tile<Type>(weights_of<Type>(table.rows[place.row], place), place.count, [&](const Keys<Type>& keys) {
    for (int j = 0; j < kKeyLanes<Type>; ++j) {
      const bits_t key = keys.values[j];
      const auto digits = static_cast<bits_t>(key >> shift);
      const bool is_counted = static_cast<bits_t>(digits / kCountedValues) == prefix && key != kNoKey<Type>;
      if (is_counted) atomicAdd(&own[digits % kCountedValues], 1u);
    }
  });
  __syncthreads();
  for (int value = threadIdx.x; value < kCountedValues; value += kThreads) {
    uint32_t sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += counts[warp][value];
    if (sum != 0) atomicAdd(&histograms[index * kCountedValues + value], static_cast<unsigned long long>(sum));
  }
}

}  // namespace

void count_digits(const std::vector<SelectRow>& rows, Storage storage, const int64_t* prefixes, int shift,
                  int64_t* histograms, cudaStream_t stream) {
  visit_storage(storage, [&](auto type) {
    for (const auto& table : make_tables(rows))
      launch(stream, table.n_chunks(), magnitude_histogram_kernel<decltype(type)>, table, prefixes, shift,
             reinterpret_cast<unsigned long long*>(histograms));
  });
}

}  // namespace dsd::cuda
