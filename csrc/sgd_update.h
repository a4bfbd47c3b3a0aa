// The update of one element, for host and device: the only C++ copy of the formula.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define DSD_INLINE __host__ __device__ __forceinline__
#else
#define DSD_INLINE inline __attribute__((always_inline))
#endif

namespace dsd {

template <typename scalar_t>
struct SgdOptions {
  scalar_t lr;
  scalar_t momentum;
  scalar_t undamped;  // 1 - dampening
  scalar_t weight_decay;
  scalar_t inverse_grad_scale;
  bool nesterov;
  bool maximize;
  bool mask_momentum;
  bool has_grad_scale;
};

// What a step is asked for, as the ops take it; grad_scale counts only where there is one.
struct SgdNumbers {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  bool nesterov;
  bool maximize;
  bool mask_momentum;
  bool has_grad_scale = false;
  double grad_scale = 1;
};

template <typename scalar_t>
DSD_INLINE SgdOptions<scalar_t> make_options(const SgdNumbers& numbers) {
  SgdOptions<scalar_t> options{};
  options.lr = static_cast<scalar_t>(numbers.lr);
  options.momentum = static_cast<scalar_t>(numbers.momentum);
  options.undamped = static_cast<scalar_t>(1 - numbers.dampening);
  options.weight_decay = static_cast<scalar_t>(numbers.weight_decay);
  options.has_grad_scale = numbers.has_grad_scale;
  if (numbers.has_grad_scale) options.inverse_grad_scale = static_cast<scalar_t>(1 / numbers.grad_scale);
  options.nesterov = numbers.nesterov;
  options.maximize = numbers.maximize;
  options.mask_momentum = numbers.mask_momentum;
  return options;
}

DSD_INLINE float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DSD_INLINE double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }

// Rounds where torch rounds: add(x, alpha) is one fused multiply-add, mul rounds on its own. Compile without
// contraction, or the compiler fuses more.
template <bool has_momentum, typename scalar_t>
DSD_INLINE void sgd_update(scalar_t& param, scalar_t grad, scalar_t& momentum_buffer, bool keep, bool keep_momentum,
                           const SgdOptions<scalar_t>& options) {
  if (options.has_grad_scale) grad = grad * options.inverse_grad_scale;
  if (options.maximize) grad = -grad;
  if (options.weight_decay != 0) grad = fused_multiply_add(param, options.weight_decay, grad);
  if constexpr (has_momentum) {
    const scalar_t decayed = momentum_buffer * options.momentum;
    const scalar_t buffer = fused_multiply_add(grad, options.undamped, decayed);
    grad = options.nesterov ? fused_multiply_add(buffer, options.momentum, grad) : buffer;
    momentum_buffer = keep_momentum ? buffer : scalar_t(0);
  }
  // by selection, never by multiplication: NaN, Inf and -0 do not survive in a pruned weight
  param = keep ? fused_multiply_add(grad, -options.lr, param) : scalar_t(0);
}

template <bool has_momentum, typename scalar_t>
DSD_INLINE void sgd_update(scalar_t& param, scalar_t grad, scalar_t& momentum_buffer, bool keep,
                           const SgdOptions<scalar_t>& options) {
  sgd_update<has_momentum>(param, grad, momentum_buffer, keep, keep | !options.mask_momentum, options);
}

}  // namespace dsd
