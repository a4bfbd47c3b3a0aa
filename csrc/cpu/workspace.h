// Memory that is kept from call to call: fresh pages would cost several times the read that a selection is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace dsd::cpu {

constexpr size_t kRetainedBytes = size_t(64) << 20;  // by each thread that selects; more is given back after the call

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(); }

  // Uninitialised memory for n values; what was there before is lost.
  template <typename value_t>
  value_t* reserve(int64_t n) {
    const size_t bytes = static_cast<size_t>(n) * sizeof(value_t);
    if (bytes > bytes_) {
      release();
      data_ = ::operator new(bytes, kAlignment);
      bytes_ = bytes;
    }
    return static_cast<value_t*>(data_);
  }

  void trim() {
    if (bytes_ > kRetainedBytes) release();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  void release() {
    ::operator delete(data_, kAlignment);
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace dsd::cpu
