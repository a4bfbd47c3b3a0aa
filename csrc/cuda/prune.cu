// Mask, zero weights and momentum, after a selection: one read and write of weights and momentum and one write of bits,
// and one more read of a tensor of which only some of the ties at the threshold are pruned. No synchronisation.
#include "keys.h"
#include "launch.h"
#include "selection.h"

namespace dsd::cuda {
namespace {

__device__ __forceinline__ bool loses_some_ties(const Search& search) {
  return 0 < search.rank && search.rank < search.n_equal;
}

// Let ties[i] be the number of ties before the i-th of a tensor's chunks; it was the number in it. They were written by
// other blocks, so they are read past the first cache.
__device__ __forceinline__ void scan_chunks(volatile int64_t* ties, int32_t n) {
  int64_t before = 0;
  for (int32_t first = 0; first < n; first += kThreads) {
    const int32_t i = first + threadIdx.x;
    const auto scan = scan_block(i < n ? static_cast<int64_t>(ties[i]) : 0);
    if (i < n) ties[i] = before + scan.before;
    before += scan.total;
  }
}

template <typename Type>
__global__ void __launch_bounds__(kThreads) ties_kernel(const Table<SelectRow> __grid_constant__ table,
                                                        const Selection __grid_constant__ selection, int64_t* ties) {
  const Place place = locate(table, blockIdx.x);
  Group& group = selection.groups[table.first_tensor + place.row];
  const Search search = group.search;
  if (!loses_some_ties(search)) return;
  const auto threshold = static_cast<typename Type::bits_t>(search.lo);
  int n_equal = 0;
  for_each_tile<Type>(weights_of<Type>(table.rows[place.row], place), place.count, [&](const Keys<Type>& keys) {
    for (int j = 0; j < kKeyLanes<Type>; ++j) n_equal += keys.values[j] == threshold;
  });
  n_equal = scan_block(n_equal).total;
  if (threadIdx.x == 0) ties[place.chunk] = n_equal;
  if (is_last_block(group, group.n_blocks))
    scan_chunks(ties + table.first_chunk[place.row], static_cast<int32_t>(group.n_blocks));
}

// The chunk's, where the counts of ties before each of the tensor's chunks are needed and known.
__device__ __forceinline__ Cut find_cut(const Search& search, const int64_t* ties, const Place& place, int32_t end) {
  if (!loses_some_ties(search)) return {search.rank, false};
  return cut_of_chunk(search.rank, ties[place.chunk], place.chunk + 1 == end ? search.n_equal : ties[place.chunk + 1]);
}

// Which of a thread's weights are kept, as bits. With needs_order, `n_ties_left` counts down over the tiles.
template <typename Type>
__device__ __forceinline__ uint32_t keep_bits(const Keys<Type>& weights, int n, uint64_t threshold, Cut& cut) {
  uint32_t above = 0, ties = 0;
  for (int j = 0; j < kKeyLanes<Type>; ++j) {
    const auto key = Type::key(weights.values[j]);
    above |= static_cast<uint32_t>(j < n && key > static_cast<typename Type::bits_t>(threshold)) << j;
    ties |= static_cast<uint32_t>(j < n && key == static_cast<typename Type::bits_t>(threshold)) << j;
  }
  if (!cut.needs_order) return cut.n_ties > 0 ? above : above | ties;
  const auto scan = scan_block(__popc(ties));
  const int64_t n_lost = cut.n_ties - scan.before;
  cut.n_ties -= scan.total;
  for (int64_t i = 0; i < n_lost && ties != 0; ++i) ties &= ties - 1;
  return above | ties;
}

// The mask bits of a few neighbouring threads are a word, which the first of them writes.
template <int kLanes>
__device__ __forceinline__ void store_mask(uint8_t* mask, int i, int n_padded, bool is_aligned, uint32_t keep) {
  constexpr int kSharers = 32 / kLanes;
  const int place = threadIdx.x % kSharers;
  uint32_t word = keep << (place * kLanes);
  for (int step = 1; step < kSharers; step *= 2) word |= __shfl_xor_sync(kAllLanes, word, step);
  if (place != 0 || i >= n_padded) return;
  if (is_aligned)
    *reinterpret_cast<uint32_t*>(mask + i / 8) = word;
  else
    for (int byte = 0; byte < 4; ++byte) mask[i / 8 + byte] = static_cast<uint8_t>(word >> 8 * byte);
}

// n of the values exist, where that is not all of them.
template <typename value_t, int kLanes>
__device__ __forceinline__ void zero(value_t* to, Vector<value_t, kLanes> values, int n, bool is_wide, uint32_t keep) {
  for (int j = 0; j < kLanes; ++j) values.values[j] = (keep >> j & 1) != 0 ? values.values[j] : value_t(0);
  if (is_wide && n >= kLanes) return store_vector(to, values);
  for (int j = 0; j < kLanes; ++j)
    if (j < n) to[j] = values.values[j];
}

template <int kLanes, typename value_t>
__device__ __forceinline__ Vector<value_t, kLanes> load(const value_t* from, int n, bool is_wide) {
  if (is_wide && n >= kLanes) return load_vector<kLanes>(from);
  Vector<value_t, kLanes> values{};
  for (int j = 0; j < kLanes; ++j)
    if (j < n) values.values[j] = from[j];
  return values;
}

template <typename Type>
__global__ void __launch_bounds__(kThreads)
    prune_kernel(const Table<SelectRow> __grid_constant__ table, const Selection __grid_constant__ selection,
                 const int64_t* ties) {
  using bits_t = typename Type::bits_t;
  constexpr int kLanes = kKeyLanes<Type>;
  const Place place = locate(table, blockIdx.x);
  const SelectRow& row = table.rows[place.row];
  const Search search = selection.groups[table.first_tensor + place.row].search;
  Cut cut = find_cut(search, ties, place, table.first_chunk[place.row + 1]);
  bits_t* weights = static_cast<bits_t*>(row.weights) + place.first;
  bits_t* buffer = row.momentum_buffer == nullptr ? nullptr : static_cast<bits_t*>(row.momentum_buffer) + place.first;
  uint8_t* mask = row.mask + place.first / 8;
  const bool is_wide = are_aligned(weights, buffer), is_aligned = are_aligned(mask);
  const int n_padded = (place.count + 63) / 64 * 64;
  int i = threadIdx.x * kLanes;
  for (int tile = 0; tile < n_padded; tile += kTile<Type>, i += kTile<Type>) {
    const int n = place.count - i;
    const auto old_weights = load<kLanes>(weights + i, n, is_wide);
    const uint32_t keep = keep_bits<Type>(old_weights, n, search.lo, cut);
    store_mask<kLanes>(mask, i, n_padded, is_aligned, keep);
    zero(weights + i, old_weights, n, is_wide, keep);
    if (buffer != nullptr) zero(buffer + i, load<kLanes>(buffer + i, n, is_wide), n, is_wide, keep);
  }
}

}  // namespace

void prune(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection, int64_t* ties,
           cudaStream_t stream) {
  const auto tables = make_tables(rows);
  visit_storage(storage, [&](auto type) {
    using Type = decltype(type);
    for (const auto& table : tables) launch(stream, table.n_chunks(), ties_kernel<Type>, table, selection, ties);
    for (const auto& table : tables) launch(stream, table.n_chunks(), prune_kernel<Type>, table, selection, ties);
  });
}

}  // namespace dsd::cuda
