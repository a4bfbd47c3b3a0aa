// Sixteen bytes at a time: what a thread moves in one access where addresses and sizes allow it.
#pragma once

#include <cstdint>
#include <cstring>

#include "../sgd_update.h"

namespace dsd::cuda {

constexpr int kVectorBytes = 16;

template <typename value_t, int n>
struct alignas(n * sizeof(value_t)) Vector {
  value_t values[n];
};

// A load stays where it is written: the compiler would move it behind a branch, where it waits for the load before.
template <int n, typename value_t>
DSD_INLINE Vector<value_t, n> load_vector(const value_t* from) {
#if defined(__CUDA_ARCH__)
  Vector<value_t, n> vector;
  uint32_t words[sizeof(vector) / sizeof(uint32_t)];
  if constexpr (sizeof(vector) == 16)
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(from));
  else
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(from));
  std::memcpy(&vector, words, sizeof(vector));
  return vector;
#else
  return *reinterpret_cast<const Vector<value_t, n>*>(from);
#endif
}

template <int n, typename value_t>
DSD_INLINE void store_vector(value_t* to, const Vector<value_t, n>& vector) {
  *reinterpret_cast<Vector<value_t, n>*>(to) = vector;
}

// Whether vectors may start at all of the addresses; a null is no obstacle.
template <typename... Pointers>
DSD_INLINE bool are_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ...) & (kVectorBytes - 1)) == 0;
}

// The n <= 32 mask bits from weight i on, a multiple of n, of an aligned mask, lowest first; all kept without a mask.
DSD_INLINE uint32_t load_mask_bits(const uint8_t* mask, int64_t i) {
  if (mask == nullptr) return ~uint32_t(0);
  return reinterpret_cast<const uint32_t*>(mask)[i / 32] >> (i % 32);
}

DSD_INLINE bool load_mask_bit(const uint8_t* mask, int64_t i) {
  return mask == nullptr || ((mask[i / 8] >> (i % 8)) & 1) != 0;
}

}  // namespace dsd::cuda
