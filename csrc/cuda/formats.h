// How weights are stored and computed: their bits, to and from the dtype of the arithmetic, on host and device.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

#include "../radix_key.h"

namespace dsd::cuda {

enum class Storage : int32_t { float32, float64, bfloat16, float16 };

template <typename to_t, typename from_t>
DSD_INLINE to_t bits_as(from_t from) {
  static_assert(sizeof(to_t) == sizeof(from_t));
  to_t to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

struct Float32 : Float32Key {
  using compute_t = float;
  static DSD_INLINE float decode(uint32_t bits) { return bits_as<float>(bits); }
  static DSD_INLINE uint32_t encode(float value) { return bits_as<uint32_t>(value); }
};

struct Float64 : Float64Key {
  using compute_t = double;
  static DSD_INLINE double decode(uint64_t bits) { return bits_as<double>(bits); }
  static DSD_INLINE uint64_t encode(double value) { return bits_as<uint64_t>(value); }
};

// Both halves round once, to nearest even.
struct BFloat16 : BFloat16Key {
  using compute_t = float;
  static DSD_INLINE float decode(uint16_t bits) { return bits_as<float>(static_cast<uint32_t>(bits) << 16); }
  static DSD_INLINE uint16_t encode(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
  }
};

struct Float16 : Float16Key {
  using compute_t = float;
#if defined(__CUDACC__)
  static DSD_INLINE float decode(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
  static DSD_INLINE uint16_t encode(float value) { return __half_as_ushort(__float2half_rn(value)); }
#else
  static DSD_INLINE float decode(uint16_t bits) { return static_cast<float>(bits_as<_Float16>(bits)); }
  static DSD_INLINE uint16_t encode(float value) { return bits_as<uint16_t>(static_cast<_Float16>(value)); }
#endif
};

// Call visitor(Type{}) for the type of a storage.
template <typename Visitor>
void visit_storage(Storage storage, const Visitor& visitor) {
  switch (storage) {
    case Storage::float32: return visitor(Float32{});
    case Storage::float64: return visitor(Float64{});
    case Storage::bfloat16: return visitor(BFloat16{});
    case Storage::float16: return visitor(Float16{});
  }
}

}  // namespace dsd::cuda
