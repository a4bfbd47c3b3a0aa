// The magnitudes of the keys that a selection has found. No pass over the weights; no synchronisation.
#include "launch.h"
#include "selection.h"

namespace dsd::cuda {
namespace {

template <typename compute_t>
__device__ __forceinline__ compute_t special(uint64_t float64_bits) {
  return static_cast<compute_t>(bits_as<double>(float64_bits));
}

template <typename Type>
__global__ void __launch_bounds__(kThreads)
    magnitudes_kernel(const Selection __grid_constant__ selection, typename Type::compute_t* values, const int64_t n) {
  using compute_t = typename Type::compute_t;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const Group& group = selection.groups[i];
  if (group.k == 0)
    values[i] = special<compute_t>(0xfff0000000000000u);  // minus infinity
  else if (group.search.lo == Type::nan_key)
    values[i] = special<compute_t>(0x7ff8000000000000u);
  else
    values[i] = Type::decode(static_cast<typename Type::bits_t>(group.search.lo));
}

}  // namespace

void write_magnitudes(int64_t n_groups, Storage storage, const Selection& selection, void* values,
                      cudaStream_t stream) {
  visit_storage(storage, [&](auto type) {
    using Type = decltype(type);
    launch(stream, (n_groups + kThreads - 1) / kThreads, magnitudes_kernel<Type>, selection,
           static_cast<typename Type::compute_t*>(values), n_groups);
  });
}

}  // namespace dsd::cuda
