// The instruction set, chosen at run time: wheels move between machines.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define DSD_HAS_X86_TARGETS 1
#define DSD_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2")))
#define DSD_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2,prefer-vector-width=512")))
#endif

namespace dsd::cpu {

enum class Isa { plain, avx2, avx512 };

inline Isa detect_isa() {
  Isa best = Isa::plain;
#if defined(DSD_HAS_X86_TARGETS)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    best = Isa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      best = Isa::avx512;
  }
#endif
  // a limit from above, so that every path can be tested on one machine
  const char* limit = std::getenv("DSD_KERNELS_ISA");
  if (limit != nullptr && std::strcmp(limit, "plain") == 0) return Isa::plain;
  if (limit != nullptr && std::strcmp(limit, "avx2") == 0 && best == Isa::avx512) return Isa::avx2;
  return best;
}

inline Isa isa() {
  static const Isa chosen = detect_isa();
  return chosen;
}

// Whether AVX-512 compresses lanes of 16 bits too: from Ice Lake and Zen 4 on.
inline bool compresses_16_bits() {
#if defined(DSD_HAS_X86_TARGETS)
  static const bool has_vbmi2 = __builtin_cpu_supports("avx512vbmi2");
  return has_vbmi2;
#else
  return false;
#endif
}

// Run Loop::run, compiled once for each instruction set. Loop::run must be DSD_INLINE, or it keeps the plain one.
template <typename Loop>
struct Multiversioned {
#if defined(DSD_HAS_X86_TARGETS)
  template <typename... Args>
  DSD_TARGET_AVX512 static void avx512(Args... args) {
    Loop::run(args...);
  }
  template <typename... Args>
  DSD_TARGET_AVX2 static void avx2(Args... args) {
    Loop::run(args...);
  }
#endif
  template <typename... Args>
  static void run(Args... args) {
#if defined(DSD_HAS_X86_TARGETS)
    if (isa() == Isa::avx512) return avx512(args...);
    if (isa() == Isa::avx2) return avx2(args...);
#endif
    Loop::run(args...);
  }
};

}  // namespace dsd::cpu
