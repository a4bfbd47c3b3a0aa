// Where a block collects keys: each thread in a column of shared memory of its own. They go to the group's staging with
// a single atomic, of a warp when one of its columns may be full, and of the block at the end.
#pragma once

#include "keys.h"

namespace dsd::cuda {

template <typename Type>
class Staging {
 public:
  using bits_t = typename Type::bits_t;

  __device__ __forceinline__ Staging(bits_t* buffer, Group& group, const SelectRow& row)
      : buffer_(pinned(buffer)), next_(threadIdx.x), group_(group), row_(row) {}

  static constexpr int kPerThread = 16;
  static constexpr int kBuffer = kPerThread * kThreads;

  // Called by whole warps, before each thread appends up to n_each more.
  __device__ __forceinline__ void make_room(int n_each) {
    if (!__any_sync(kAllLanes, size() + n_each > kPerThread)) return;
    const auto scan = scan_warp(size());
    unsigned long long begin = 0;
    if (threadIdx.x % kWarpThreads == 0) begin = atomicAdd(&group_.inside, static_cast<unsigned long long>(scan.total));
    copy_out(__shfl_sync(kAllLanes, begin, 0) + scan.before);
  }

  __device__ __forceinline__ void append(bits_t key, bool is_inside) {
    if (!is_inside) return;
    buffer_[next_] = key;
    next_ += kThreads;
  }

  // Called by the whole block, at the end.
  __device__ __forceinline__ void flush() {
    const auto scan = scan_block(size());
    unsigned long long begin = 0;
    if (threadIdx.x == 0 && scan.total > 0)
      begin = atomicAdd(&group_.inside, static_cast<unsigned long long>(scan.total));
    copy_out(broadcast(begin, threadIdx.x == 0) + scan.before);
  }

 private:
  __device__ __forceinline__ int size() const { return static_cast<int>(next_ / kThreads); }

  // An address in shared memory that is worked out once: the compiler would do that wherever it is used.
  static __device__ __forceinline__ bits_t* pinned(bits_t* shared) {
#if defined(__CUDA_ARCH__)
    auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("" : "+r"(address));
    return static_cast<bits_t*>(__cvta_shared_to_generic(address));
#else
    return shared;
#endif
  }

  // Keys beyond the capacity are counted and dropped.
  __device__ __forceinline__ void copy_out(unsigned long long begin) {
    bits_t* staged = static_cast<bits_t*>(row_.staged);
#pragma unroll 1
    for (unsigned i = threadIdx.x; i != next_; i += kThreads, ++begin)
      if (begin < static_cast<unsigned long long>(row_.capacity)) staged[begin] = buffer_[i];
    next_ = threadIdx.x;
  }

  bits_t* buffer_;
  unsigned next_;  // in a column: every kThreads-th place is this thread's
  Group& group_;
  const SelectRow& row_;
};

}  // namespace dsd::cuda
