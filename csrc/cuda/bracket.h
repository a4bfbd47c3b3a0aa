// Weights held to the bracket of a search, a vector of them at a time: how many are below it and at its bounds, and
// which are inside.
//
// Of the bits only the sign is taken away here, so NaNs are any keys from nan_key on, and so are weights that are not
// there.
#pragma once

#include "keys.h"

namespace dsd::cuda {

template <typename Type, int itemsize = sizeof(typename Type::bits_t)>
class Bracket {
 public:
  using bits_t = typename Type::bits_t;

  __device__ __forceinline__ explicit Bracket(const Search& search)
      : lo_(static_cast<bits_t>(search.lo)), hi_(static_cast<bits_t>(search.hi)) {}

  // Which lanes of a vector are inside, in the bit that flag_of names.
  __device__ __forceinline__ unsigned split(const Keys<Type>& bits) {
    unsigned inside = 0;
    for (int lane = 0; lane < kKeyLanes<Type>; ++lane) {
      const bits_t key = bits.values[lane] & Type::magnitude_bits;
      const bits_t up_to_lo = key - (lo_ + 1), below_hi = key - hi_;
      n_below_ += sign(key - lo_);
      n_up_to_lo_ += sign(up_to_lo);
      n_below_hi_ += sign(below_hi);
      n_up_to_hi_ += sign(key - (hi_ + 1));
      inside |= sign(~up_to_lo & below_hi) << flag_of(lane);
    }
    return inside;
  }
  static DSD_INLINE constexpr int flag_of(int lane) { return lane; }

  // Of this thread.
  __device__ __forceinline__ int n_below() const { return n_below_; }
  __device__ __forceinline__ int n_at_lo() const { return n_up_to_lo_ - n_below_; }
  __device__ __forceinline__ int n_at_hi() const { return n_up_to_hi_ - n_below_hi_; }

 private:
  // Of a difference of keys, which have no sign: whether it is negative. Fewer instructions than a comparison.
  static __device__ __forceinline__ unsigned sign(bits_t bits) {
    return static_cast<unsigned>(bits >> (8 * itemsize - 1));
  }

  bits_t lo_, hi_;
  int n_below_ = 0, n_up_to_lo_ = 0, n_below_hi_ = 0, n_up_to_hi_ = 0;
};

// Two weights of 16 bits at a time, the halves of a word: with its sign bit set, a half less a bound keeps that bit
// where the weight is not below the bound, and borrows nothing from the other half.
template <typename Type>
class Bracket<Type, 2> {
 public:
  __device__ __forceinline__ explicit Bracket(const Search& search)
      : lo_(static_cast<uint32_t>(search.lo) * kOnes), hi_(static_cast<uint32_t>(search.hi) * kOnes) {}

  __device__ __forceinline__ unsigned split(const Keys<Type>& bits) {
    uint32_t words[kWords];
    std::memcpy(words, &bits, sizeof(words));
    for (uint32_t& word : words) word |= kSigns;
    const unsigned from_lo = not_below(words, lo_), above_lo = not_below(words, lo_ + kOnes);
    const unsigned from_hi = not_below(words, hi_), above_hi = not_below(words, hi_ + kOnes);
    n_below_ += kKeyLanes<Type> - __popc(from_lo);
    n_at_lo_ += __popc(from_lo ^ above_lo);
    n_at_hi_ += __popc(from_hi ^ above_hi);
    return above_lo & ~from_hi;
  }
  static DSD_INLINE constexpr int flag_of(int lane) { return 15 - lane / 2 + lane % 2 * 16; }

  __device__ __forceinline__ int n_below() const { return n_below_; }
  __device__ __forceinline__ int n_at_lo() const { return n_at_lo_; }
  __device__ __forceinline__ int n_at_hi() const { return n_at_hi_; }

 private:
  static constexpr int kWords = kKeyLanes<Type> / 2;
  static constexpr uint32_t kOnes = 0x00010001, kSigns = 0x80008000;

  static __device__ __forceinline__ unsigned not_below(const uint32_t (&words)[kWords], uint32_t bound) {
    unsigned flags = 0;
    for (int i = 0; i < kWords; ++i) flags |= (words[i] - bound & kSigns) >> i;
    return flags;
  }

  uint32_t lo_, hi_;
  int n_below_ = 0, n_at_lo_ = 0, n_at_hi_ = 0;
};

}  // namespace dsd::cuda
