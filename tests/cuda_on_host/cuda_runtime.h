// What the CUDA kernels use of CUDA, on the host: the kernels are compiled by a C++ compiler against this header, and
// their numbers can be tested without a GPU. The threads of a block are fibers of one thread of the host; blocks run
// one after another. Barriers are strict: a thread that is missing at one is an error, not a hang. The order in which
// threads run turns round at every barrier, so that a missing one does not always go unseen.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __shared__ static
#define __grid_constant__ &  // stands behind the type: not a copy for each thread
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
  unsigned x;
  dim3(unsigned x = 1) : x(x) {}
};
inline dim3 threadIdx(0), blockIdx(0), blockDim(1), gridDim(1);

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace cuda_on_host {

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 256 * 1024;

enum class State { finished, at_warp_barrier, at_block_barrier };

// Entered once as a context; then by jumps, which, unlike contexts, cost no call to the system.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool is_entered = false;
  State state = State::finished;
  unsigned n_exchanges = 0;
};

class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  void run(const std::function<void()>& kernel) {
    kernel_ = &kernel;
    running_.assign(blockDim.x, nullptr);
    std::vector<unsigned> threads(blockDim.x);
    for (unsigned i = 0; i < blockDim.x; ++i) threads[i] = i;
    while (!threads.empty()) {
      is_reversed_ = !is_reversed_;
      for (size_t i = 0; i < threads.size(); ++i) resume(threads[is_reversed_ ? threads.size() - 1 - i : i]);
      threads = release();
    }
  }

  void wait(State barrier) {
    Fiber& fiber = *running_[threadIdx.x];
    fiber.state = barrier;
    if (_setjmp(fiber.place) == 0) _longjmp(scheduler_place_, 1);
  }

  // Every lane of the warp hands in a value and sees those of all, until it hands in the next but one.
  const uint64_t* exchange(uint64_t value) {
    uint64_t* slots = slots_[running_[threadIdx.x]->n_exchanges++ % 2] + threadIdx.x / kLanes * kLanes;
    slots[threadIdx.x % kLanes] = value;
    wait(State::at_warp_barrier);
    return slots;
  }

 private:
  void resume(unsigned thread) {
    if (running_[thread] == nullptr) running_[thread] = idle_fiber();
    Fiber& fiber = *running_[thread];
    threadIdx.x = thread;
    if (_setjmp(scheduler_place_) == 0) enter(fiber);
    if (fiber.state == State::finished) {
      idle_.push_back(&fiber);
      running_[thread] = nullptr;
    }
  }

  [[noreturn]] static void enter(Fiber& fiber) {
    if (fiber.is_entered) _longjmp(fiber.place, 1);
    fiber.is_entered = true;
    setcontext(&fiber.context);
    std::abort();
  }

  Fiber* idle_fiber() {
    if (idle_.empty()) {
      Fiber& fiber = *fibers_.emplace_back(new Fiber);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      makecontext(&fiber.context, &Block::loop, 0);
      idle_.push_back(&fiber);
    }
    Fiber* fiber = idle_.back();
    idle_.pop_back();
    fiber->n_exchanges = 0;
    return fiber;
  }

  // A fiber runs thread after thread, as long as they do not wait.
  static void loop() {
    Block& block = current();
    Fiber& fiber = *block.running_[threadIdx.x];
    for (;;) {
      (*block.kernel_)();
      fiber.state = State::finished;
      if (_setjmp(fiber.place) == 0) _longjmp(block.scheduler_place_, 1);
    }
  }

  // The threads that may go on: whole warps at a barrier of theirs, otherwise all, at that of the block.
  std::vector<unsigned> release() {
    std::vector<unsigned> waiting, released;
    for (unsigned first = 0; first < running_.size(); first += kLanes) {
      unsigned n_at_warp_barrier = 0;
      for (unsigned i = first; i < first + kLanes; ++i) {
        if (running_[i] == nullptr) continue;
        waiting.push_back(i);
        n_at_warp_barrier += running_[i]->state == State::at_warp_barrier;
      }
      if (n_at_warp_barrier == kLanes)
        for (unsigned i = first; i < first + kLanes; ++i) released.push_back(i);
      else if (n_at_warp_barrier != 0)
        fail("lanes of a warp are missing at its barrier");
    }
    if (!released.empty()) return released;
    if (!waiting.empty() && waiting.size() != running_.size()) fail("threads have left before a barrier of the block");
    return waiting;
  }

  [[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "cuda_on_host: block %u: %s\n", blockIdx.x, what);
    std::abort();
  }

  jmp_buf scheduler_place_;
  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  std::vector<Fiber*> running_;
  bool is_reversed_ = true;
  uint64_t slots_[2][1024];
};

}  // namespace cuda_on_host

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    cuda_on_host::Block::current().run([&] { kernel(arguments...); });
  return cudaSuccess;
}

inline void __syncthreads() { cuda_on_host::Block::current().wait(cuda_on_host::State::at_block_barrier); }
inline void __syncwarp() { cuda_on_host::Block::current().wait(cuda_on_host::State::at_warp_barrier); }
inline void __threadfence() {}

namespace cuda_on_host {

template <typename value_t>
value_t lane_value(value_t value, unsigned lane) {
  return static_cast<value_t>(Block::current().exchange(static_cast<uint64_t>(value))[lane]);
}

}  // namespace cuda_on_host

inline unsigned __ballot_sync(unsigned, int predicate) {
  const uint64_t* values = cuda_on_host::Block::current().exchange(predicate != 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < cuda_on_host::kLanes; ++lane) ballot |= static_cast<unsigned>(values[lane]) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <typename value_t>
value_t __shfl_sync(unsigned, value_t value, int lane) {
  return cuda_on_host::lane_value(value, static_cast<unsigned>(lane));
}
template <typename value_t>
value_t __shfl_xor_sync(unsigned, value_t value, int lanes) {
  return cuda_on_host::lane_value(value, threadIdx.x % cuda_on_host::kLanes ^ static_cast<unsigned>(lanes));
}
template <typename value_t>
value_t __shfl_up_sync(unsigned, value_t value, unsigned lanes) {
  const unsigned lane = threadIdx.x % cuda_on_host::kLanes;
  return cuda_on_host::lane_value(value, lane < lanes ? lane : lane - lanes);
}

template <typename value_t>
value_t atomicAdd(value_t* address, value_t value) {
  const value_t old = *address;
  *address += value;
  return old;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
