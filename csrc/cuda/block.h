// What the threads of a block, or of a warp, work out together. All of them must call these, at the same place.
#pragma once

#include "launch.h"
#include "search.h"

namespace dsd::cuda {

template <typename value_t>
struct Scan {
  value_t before;  // the sum of the values of lower threads
  value_t total;
};

template <typename value_t>
__device__ __forceinline__ Scan<value_t> scan_warp(value_t value) {
  value_t up_to = value;
  for (int step = 1; step < kWarpThreads; step *= 2) {
    const value_t lower = __shfl_up_sync(kAllLanes, up_to, step);
    if (static_cast<int>(threadIdx.x) % kWarpThreads >= step) up_to += lower;
  }
  return {up_to - value, __shfl_sync(kAllLanes, up_to, kWarpThreads - 1)};
}

template <typename value_t>
__device__ __forceinline__ Scan<value_t> scan_block(value_t value) {
  __shared__ value_t warp_sums[kWarps];
  const Scan<value_t> warp_scan = scan_warp(value);
  if (threadIdx.x % kWarpThreads == 0) warp_sums[threadIdx.x / kWarpThreads] = warp_scan.total;
  __syncthreads();
  Scan<value_t> scan{warp_scan.before, 0};
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < static_cast<int>(threadIdx.x) / kWarpThreads) scan.before += warp_sums[warp];
    scan.total += warp_sums[warp];
  }
  __syncthreads();
  return scan;
}

template <typename value_t>
__device__ __forceinline__ value_t broadcast(value_t value, bool is_source) {
  __shared__ value_t shared;
  if (is_source) shared = value;
  __syncthreads();
  const value_t result = shared;
  __syncthreads();
  return result;
}

// Narrow the search by the digit of the key looked for, from the counts of all digits within its bracket.
template <typename count_t>
__device__ __forceinline__ Search take_digit(const Search& search, const volatile count_t* counts) {
  constexpr int kPerThread = kBins / kThreads;
  const int first = threadIdx.x * kPerThread;
  int64_t sum = 0;
  for (int i = 0; i < kPerThread; ++i) sum += static_cast<int64_t>(counts[first + i]);
  int64_t before = scan_block(sum).before;
  const bool is_mine = before < search.rank && search.rank <= before + sum;
  Search result = search;
  if (is_mine) {
    int bin = first;
    int64_t n = static_cast<int64_t>(counts[bin]);
    while (before + n < search.rank) {
      before += n;
      n = static_cast<int64_t>(counts[++bin]);
    }
    narrow_by_digit(result, bin, before, n);
  }
  return broadcast(result, is_mine);
}

// The bin of a key; -1 where it lies outside the bracket.
template <typename bits_t>
__device__ __forceinline__ int bin_of(bits_t key, const Search& search, int shift) {
  const bits_t distance = static_cast<bits_t>(key - static_cast<bits_t>(search.lo));
  return distance <= static_cast<bits_t>(search.hi - search.lo) ? static_cast<int>(distance >> shift) : -1;
}

__device__ __forceinline__ void clear(uint32_t* counts) {
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) counts[bin] = 0;
}

// Finish a search among n keys of `key_bits` bits in shared memory.
template <int key_bits, typename bits_t>
__device__ __forceinline__ Search search_block(Search search, const bits_t* keys, int n, uint32_t* counts) {
  for (int digit = 0; digit < count_digits(key_bits) && !search.is_found; ++digit) {
    clear(counts);
    __syncthreads();
    const int shift = digit_shift(search);
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const int bin = bin_of(keys[i], search, shift);
      if (bin >= 0) atomicAdd(&counts[bin], 1u);
    }
    __syncthreads();
    search = take_digit(search, counts);
  }
  return search;
}

}  // namespace dsd::cuda
