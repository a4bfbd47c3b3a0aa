// Where a block collects keys: each warp in a part of shared memory of its own, without atomics, and all of them at the
// end, or one warp when its part is full, to the group's staging with a single atomic.
#pragma once

#include "keys.h"

namespace dsd::cuda {

template <typename Type>
class Staging {
 public:
  using bits_t = typename Type::bits_t;

  __device__ __forceinline__ Staging(bits_t* buffer, Group& group, const SelectRow& row)
      : buffer_(buffer + threadIdx.x / kWarpThreads * kPerWarp), group_(group), row_(row) {}

  static constexpr int kPerWarp = 512;
  static constexpr int kBuffer = kPerWarp * kWarps;

  // Append a thread's key where it is inside; all lanes of a warp call this.
  __device__ __forceinline__ void append(bits_t key, bool is_inside) {
    const unsigned lower_lanes = (1u << threadIdx.x % kWarpThreads) - 1;
    const unsigned ballot = __ballot_sync(kAllLanes, is_inside);
    if (is_inside) buffer_[n_ + __popc(ballot & lower_lanes)] = key;
    n_ += __popc(ballot);
  }

  // Called by whole warps, before they append up to kWarpThreads * n_each more.
  __device__ __forceinline__ void make_room(int n_each) {
    if (n_ + kWarpThreads * n_each <= kPerWarp) return;
    unsigned long long begin = 0;
    if (threadIdx.x % kWarpThreads == 0) begin = atomicAdd(&group_.inside, static_cast<unsigned long long>(n_));
    copy_out(__shfl_sync(kAllLanes, begin, 0));
    n_ = 0;
  }

  // Called by the whole block, at the end.
  __device__ __forceinline__ void flush() {
    const bool is_leader = threadIdx.x % kWarpThreads == 0;
    const auto scan = scan_block(is_leader ? n_ : 0);
    unsigned long long begin = 0;
    if (threadIdx.x == 0 && scan.total > 0)
      begin = atomicAdd(&group_.inside, static_cast<unsigned long long>(scan.total));
    begin = broadcast(begin, threadIdx.x == 0);
    copy_out(begin + __shfl_sync(kAllLanes, scan.before, 0));
  }

 private:
  // Keys beyond the capacity are counted and dropped.
  __device__ __forceinline__ void copy_out(unsigned long long begin) {
    __syncwarp();
    bits_t* staged = static_cast<bits_t*>(row_.staged);
    for (int i = threadIdx.x % kWarpThreads; i < n_; i += kWarpThreads)
      if (begin + i < static_cast<unsigned long long>(row_.capacity)) staged[begin + i] = buffer_[i];
    __syncwarp();
  }

  bits_t* buffer_;
  Group& group_;
  const SelectRow& row_;
  int n_ = 0;
};

}  // namespace dsd::cuda
