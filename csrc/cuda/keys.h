// The keys of a chunk's weights, read by all threads of a block in memory order, a vector of them each.
#pragma once

#include "block.h"
#include "formats.h"
#include "selection.h"
#include "tables.h"
#include "vectors.h"

namespace dsd::cuda {

template <typename Type>
constexpr int kKeyLanes = kVectorBytes / sizeof(typename Type::bits_t);
template <typename Type>
constexpr int kTile = kThreads * kKeyLanes<Type>;  // what a block reads at a time

// A type whose keys are its bits as they are stored.
template <typename Type>
struct Raw : Type {
  static DSD_INLINE typename Type::bits_t key(typename Type::bits_t bits) { return bits; }
};

// Stands for a key that is not there: above all others, and among raw bits a NaN.
template <typename Type>
constexpr typename Type::bits_t kNoKey = static_cast<typename Type::bits_t>(~typename Type::bits_t(0));

template <typename Type>
using Keys = Vector<typename Type::bits_t, kKeyLanes<Type>>;

template <typename Type>
__device__ __forceinline__ Keys<Type> load_keys(const typename Type::bits_t* from) {
  Keys<Type> keys = load_vector<kKeyLanes<Type>>(from);
  for (int lane = 0; lane < kKeyLanes<Type>; ++lane) keys.values[lane] = Type::key(keys.values[lane]);
  return keys;
}

// Those of the places from i on that are before the end.
template <typename Type>
__device__ __forceinline__ Keys<Type> load_keys_before(const typename Type::bits_t* from, int i, int end) {
  Keys<Type> keys;
  for (int lane = 0; lane < kKeyLanes<Type>; ++lane)
    keys.values[lane] = i + lane < end ? Type::key(from[i + lane]) : kNoKey<Type>;
  return keys;
}

// Call visit(keys) with this thread's of each tile; all threads make the same number of calls.
template <typename Type, typename Visit>
__device__ __forceinline__ void for_each_tile(const typename Type::bits_t* from, int count, const Visit& visit) {
  int i = static_cast<int>(threadIdx.x) * kKeyLanes<Type>;
  int left = count;
  if (are_aligned(from))
#pragma unroll 2
    for (; left >= kTile<Type>; left -= kTile<Type>, i += kTile<Type>) visit(load_keys<Type>(from + i));
#pragma unroll 1
  for (; left > 0; left -= kTile<Type>, i += kTile<Type>) visit(load_keys_before<Type>(from, i, count));
}

template <typename Type>
__device__ __forceinline__ const typename Type::bits_t* weights_of(const SelectRow& row, const Place& place) {
  return static_cast<const typename Type::bits_t*>(row.weights) + place.first;
}

// Whether this block is the last of n that take part in a pass over a group; what the others wrote is visible then.
__device__ __forceinline__ bool is_last_block(Group& group, uint32_t n) {
  __threadfence();
  __syncthreads();
  uint32_t arrived = 0;
  if (threadIdx.x == 0) arrived = atomicAdd(&group.n_arrived, 1u) + 1;
  const bool is_last = broadcast(arrived, threadIdx.x == 0) == n;
  if (is_last && threadIdx.x == 0) group.n_arrived = 0;
  __threadfence();
  return is_last;
}

}  // namespace dsd::cuda
