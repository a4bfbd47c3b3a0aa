// The kernels of selection.h. The weights are read once where a sample's bracket holds, and once more for each digit
// where it does not. No synchronisation.
#include "bracket.h"
#include "keys.h"
#include "launch.h"
#include "selection.h"
#include "staging.h"

namespace dsd::cuda {
namespace {

__device__ __forceinline__ void begin_group(Group& group, unsigned long long* histogram, int64_t k, int64_t n,
                                            uint32_t n_blocks, uint64_t nan_key) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
  if (threadIdx.x != 0) return;
  group = Group{};
  group.n = n;
  group.search = begin_search(k, n, nan_key);
  group.k = group.search.is_found ? 0 : group.search.rank;
  group.n_blocks = n_blocks;
}

template <typename Type>
constexpr int kSample = kSampleBytes / sizeof(typename Type::bits_t);

// The bracket of the k-th of n keys that a sample suggests.
template <typename Type>
__device__ __forceinline__ Search bracket_by_sample(const typename Type::bits_t* sample, int64_t k, int64_t n,
                                                    uint32_t* counts) {
  const SampleRanks ranks = sample_ranks(kSample<Type>, k, n);
  uint64_t bounds[2] = {0, Type::nan_key};
  for (int bound = 0; bound < 2; ++bound) {
    const int rank = bound == 0 ? ranks.lo : ranks.hi;
    if (rank == 0 || rank > kSample<Type>) continue;
    const Search all = begin_search(rank, kSample<Type>, Type::nan_key);
    bounds[bound] = search_block<Type::key_bits>(all, sample, kSample<Type>, counts).lo;
  }
  return {bounds[0], bounds[1], k, 0, false};
}

// The key looked for among n, if the sample is all of them, or a bracket of it.
template <typename Type>
__device__ __forceinline__ Search search_sample(const typename Type::bits_t* sample, const Search& all, int64_t n,
                                                uint32_t* counts) {
  if (n <= kSample<Type>) return search_block<Type::key_bits>(all, sample, static_cast<int>(n), counts);
  return bracket_by_sample<Type>(sample, all.rank, n, counts);
}

template <typename Type>
__device__ __forceinline__ int64_t place_of_sample(int i, int64_t n) {
  return n <= kSample<Type> ? i : sample_place(i, kSample<Type>, n);
}

// A block a row.
template <typename Type>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const Table<SelectRow> __grid_constant__ table, const Selection __grid_constant__ selection) {
  __shared__ typename Type::bits_t sample[kSample<Type>];
  __shared__ uint32_t counts[kBins];
  const SelectRow& row = table.rows[blockIdx.x];
  const int32_t index = table.first_tensor + blockIdx.x;
  const auto n_blocks = static_cast<uint32_t>(table.first_chunk[blockIdx.x + 1] - table.first_chunk[blockIdx.x]);
  begin_group(selection.groups[index], selection.histograms + static_cast<int64_t>(index) * kBins, selection.k[index],
              row.n, n_blocks, Type::nan_key);
  const Search all = begin_search(selection.k[index], row.n, Type::nan_key);
  if (all.is_found) return;
  const auto* weights = static_cast<const typename Type::bits_t*>(row.weights);
  for (int i = threadIdx.x; i < kSample<Type> && i < row.n; i += kThreads)
    sample[i] = Type::key(weights[place_of_sample<Type>(i, row.n)]);
  __syncthreads();
  const Search search = search_sample<Type>(sample, all, row.n, counts);
  if (threadIdx.x == 0) selection.groups[index].search = search;
}

// A row's share of a sample of all n weights. A block a row.
template <typename Type>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Table<SelectRow> __grid_constant__ table, const Selection __grid_constant__ selection,
                  const int64_t n) {
  using bits_t = typename Type::bits_t;
  const SelectRow& row = table.rows[blockIdx.x];
  for (int i = threadIdx.x; i < kSample<Type> && i < n; i += kThreads) {
    const int64_t place = place_of_sample<Type>(i, n) - row.start;
    if (0 <= place && place < row.n)
      static_cast<bits_t*>(selection.sample)[i] = Type::key(static_cast<const bits_t*>(row.weights)[place]);
  }
}

// As sample_kernel, of all rows together. One block.
template <typename Type>
__global__ void __launch_bounds__(kThreads)
    begin_all_kernel(const Selection __grid_constant__ selection, const int64_t n, const uint32_t n_blocks) {
  __shared__ typename Type::bits_t sample[kSample<Type>];
  __shared__ uint32_t counts[kBins];
  begin_group(selection.groups[0], selection.histograms, selection.k[0], n, n_blocks, Type::nan_key);
  const Search all = begin_search(selection.k[0], n, Type::nan_key);
  if (all.is_found) return;
  for (int i = threadIdx.x; i < kSample<Type> && i < n; i += kThreads)
    sample[i] = static_cast<const typename Type::bits_t*>(selection.sample)[i];
  __syncthreads();
  const Search search = search_sample<Type>(sample, all, n, counts);
  if (threadIdx.x == 0) selection.groups[0].search = search;
}

// Count and stage one chunk's keys by the bracket.
template <typename Type>
__device__ __forceinline__ void split_chunk(const SelectRow& row, const Place& place, const Search& search,
                                            typename Type::bits_t* buffer, Group& group) {
  Bracket<Type> bracket(search);
  Staging<Type> staging(buffer, group, row);
  for_each_tile<Raw<Type>>(weights_of<Type>(row, place), place.count, [&](const Keys<Type>& bits) {
    staging.make_room(kKeyLanes<Type>);
    const unsigned inside = bracket.split(bits);
    for (int lane = 0; lane < kKeyLanes<Type>; ++lane)
      staging.append(bits.values[lane] & Type::magnitude_bits, (inside >> bracket.flag_of(lane) & 1) != 0);
  });
  staging.flush();
  const auto below = scan_block(bracket.n_below()).total, at_lo = scan_block(bracket.n_at_lo()).total,
             at_hi = scan_block(bracket.n_at_hi()).total;
  if (threadIdx.x != 0) return;
  atomicAdd(&group.below, static_cast<unsigned long long>(below));
  atomicAdd(&group.at_lo, static_cast<unsigned long long>(at_lo));
  if (search.lo != search.hi) atomicAdd(&group.at_hi, static_cast<unsigned long long>(at_hi));
}

// What the counts of all blocks say of the bracket. They were written by atomics, so they are read past the first
// cache.
__device__ __forceinline__ void verify(Group& group, int64_t capacity, uint64_t nan_key) {
  const volatile Group& counted = group;
  const Counts counts{static_cast<int64_t>(counted.below), static_cast<int64_t>(counted.at_lo),
                      static_cast<int64_t>(counted.inside), static_cast<int64_t>(counted.at_hi)};
  Search search = group.search;
  const bool is_inside = narrow_by_counts(search, counts, group.n, nan_key);
  group.search = search;
  group.n_staged = is_inside && counts.inside <= capacity ? counts.inside : 0;
}

template <typename Type>
__global__ void __launch_bounds__(kThreads)
    bracket_kernel(const Table<SelectRow> __grid_constant__ table, const Selection __grid_constant__ selection,
                   const bool is_one_group) {
  __shared__ typename Type::bits_t buffer[Staging<Type>::kBuffer];
  const Place place = locate(table, blockIdx.x);
  Group& group = selection.groups[is_one_group ? 0 : table.first_tensor + place.row];
  const Search search = group.search;
  if (search.is_found) return;
  split_chunk<Type>(table.rows[place.row], place, search, buffer, group);
  if (is_last_block(group, group.n_blocks) && threadIdx.x == 0)
    verify(group, table.rows[place.row].capacity, Type::nan_key);
}

// Count the digits of one chunk into the group's histogram.
template <typename Type>
__device__ __forceinline__ void count_chunk(const typename Type::bits_t* keys, int n, const Search& search,
                                            uint32_t* counts, unsigned long long* histogram) {
  clear(counts);
  __syncthreads();
  const int shift = digit_shift(search);
  for_each_tile<Type>(keys, n, [&](const Keys<Type>& tile) {
    for (int j = 0; j < kKeyLanes<Type>; ++j) {
      const int bin = bin_of(tile.values[j], search, shift);
      if (bin >= 0) atomicAdd(&counts[bin], 1u);
    }
  });
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads)
    if (counts[bin] != 0) atomicAdd(&histogram[bin], static_cast<unsigned long long>(counts[bin]));
}

// One digit of each row's group, or of the one group of all rows.
template <typename Type>
__global__ void __launch_bounds__(kThreads)
    digit_kernel(const Table<SelectRow> __grid_constant__ table, const Selection __grid_constant__ selection,
                 const bool is_one_group) {
  __shared__ uint32_t counts[kBins];
  using bits_t = typename Type::bits_t;
  const Place place = locate(table, blockIdx.x);
  const SelectRow& row = table.rows[place.row];
  const int32_t index = is_one_group ? 0 : table.first_tensor + place.row;
  Group& group = selection.groups[index];
  unsigned long long* histogram = selection.histograms + static_cast<int64_t>(index) * kBins;
  const Search search = group.search;
  const int64_t n_staged = group.n_staged;
  const int64_t first = is_one_group ? static_cast<int64_t>(place.chunk) * SelectRow::kChunkWeights : place.first;
  if (search.is_found || (n_staged != 0 && first >= n_staged)) return;
  if (n_staged == 0) {
    count_chunk<Type>(weights_of<Type>(row, place), place.count, search, counts, histogram);
  } else {
    const int64_t left = n_staged - first;
    const int n = static_cast<int>(left < SelectRow::kChunkWeights ? left : SelectRow::kChunkWeights);
    count_chunk<Type>(static_cast<const bits_t*>(row.staged) + first, n, search, counts, histogram);
  }
  const int64_t n_staged_blocks = (n_staged + SelectRow::kChunkWeights - 1) / SelectRow::kChunkWeights;
  if (!is_last_block(group, n_staged == 0 ? group.n_blocks : static_cast<uint32_t>(n_staged_blocks))) return;
  const Search narrowed = take_digit(search, histogram);
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) histogram[bin] = 0;
  if (threadIdx.x == 0) group.search = narrowed;
}

template <typename Type>
void launch_digits(const std::vector<Table<SelectRow>>& tables, const Selection& selection, bool is_one_group,
                   cudaStream_t stream) {
  for (int digit = 0; digit < count_digits(Type::key_bits); ++digit)
    for (const auto& table : tables)
      launch(stream, table.n_chunks(), digit_kernel<Type>, table, selection, is_one_group);
}

}  // namespace

void select_each(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection, cudaStream_t stream) {
  const auto tables = make_tables(rows);
  visit_storage(storage, [&](auto type) {
    using Type = decltype(type);
    for (const auto& table : tables) launch(stream, table.n_tensors, sample_kernel<Type>, table, selection);
    for (const auto& table : tables) launch(stream, table.n_chunks(), bracket_kernel<Type>, table, selection, false);
    launch_digits<Type>(tables, selection, false, stream);
  });
}

void select_all(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection, cudaStream_t stream) {
  const auto tables = make_tables(rows);
  int64_t n = 0;
  uint32_t n_blocks = 0;
  for (const SelectRow& row : rows) n += row.n;
  for (const auto& table : tables) n_blocks += static_cast<uint32_t>(table.n_chunks());
  visit_storage(storage, [&](auto type) {
    using Type = decltype(type);
    for (const auto& table : tables) launch(stream, table.n_tensors, gather_kernel<Type>, table, selection, n);
    launch(stream, 1, begin_all_kernel<Type>, selection, n, n_blocks);
    for (const auto& table : tables) launch(stream, table.n_chunks(), bracket_kernel<Type>, table, selection, true);
    launch_digits<Type>(tables, selection, true, stream);
  });
}

}  // namespace dsd::cuda
