// How many of the k smallest of all tensors belong to each, once their threshold is known: one read of the weights,
// then the ties, of earlier tensors first. No synchronisation.
#include "keys.h"
#include "launch.h"
#include "selection.h"

namespace dsd::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    clear_kernel(unsigned long long* below, unsigned long long* equal, const int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) below[i] = equal[i] = 0;
}

template <typename Type>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const Table<SelectRow> __grid_constant__ table, const Selection __grid_constant__ selection,
                 unsigned long long* below, unsigned long long* equal) {
  const Group& group = selection.groups[0];
  if (group.k == 0) return;
  const Place place = locate(table, blockIdx.x);
  const auto threshold = static_cast<typename Type::bits_t>(group.search.lo);
  int n_below = 0, n_equal = 0;
  for_each_tile<Type>(weights_of<Type>(table.rows[place.row], place), place.count, [&](const Keys<Type>& keys) {
    for (int j = 0; j < kKeyLanes<Type>; ++j) {
      n_below += keys.values[j] < threshold;
      n_equal += keys.values[j] == threshold;
    }
  });
  n_below = scan_block(n_below).total;
  n_equal = scan_block(n_equal).total;
  if (threadIdx.x != 0) return;
  const int32_t index = table.first_tensor + place.row;
  if (n_below != 0) atomicAdd(&below[index], static_cast<unsigned long long>(n_below));
  if (n_equal != 0) atomicAdd(&equal[index], static_cast<unsigned long long>(n_equal));
}

// One block.
__global__ void __launch_bounds__(kThreads)
    share_ties_kernel(const Selection __grid_constant__ selection, const unsigned long long* below,
                      const unsigned long long* equal, int64_t* counts, const int64_t n) {
  const Group& group = selection.groups[0];
  int64_t before = 0;
  for (int64_t first = 0; first < n; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const auto mine = static_cast<int64_t>(i < n ? equal[i] : 0);
    const auto scan = scan_block(mine);
    const int64_t begin = before + scan.before;
    if (i < n) {
      const int64_t n_ties = group.k == 0 ? 0 : cut_of_chunk(group.search.rank, begin, begin + mine).n_ties;
      counts[i] = static_cast<int64_t>(below[i]) + n_ties;
    }
    before += scan.total;
  }
}

}  // namespace

void write_counts(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection,
                  unsigned long long* below, unsigned long long* equal, int64_t* counts, cudaStream_t stream) {
  const auto n = static_cast<int64_t>(rows.size());
  launch(stream, (n + kThreads - 1) / kThreads, clear_kernel, below, equal, n);
  visit_storage(storage, [&](auto type) {
    for (const auto& table : make_tables(rows))
      launch(stream, table.n_chunks(), count_kernel<decltype(type)>, table, selection, below, equal);
  });
  launch(stream, 1, share_ties_kernel, selection, below, equal, counts, n);
}

}  // namespace dsd::cuda
