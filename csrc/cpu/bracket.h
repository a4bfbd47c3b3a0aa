// One pass over keys that tells how many lie below, at and within two bounds, and collects those within: what a
// selection reads of its weights. Ties at a bound are only counted, so that no number of them needs storage.
#pragma once

#include <cstdint>

#include "bracket_avx2.h"
#include "bracket_avx512.h"
#include "bracket_plain.h"
#include "isa.h"
#include "keys.h"

namespace dsd::cpu {

constexpr int64_t kCollectSlack = 64;  // keys that may be written behind the last one collected

// Split n weights, or keys, by the bracket; `inside` has room for all of them and kCollectSlack more. What lies
// `ahead_bytes` after each of them is fetched into the caches: the hardware's own prefetching stops at each page, and
// without this a pass takes a third longer.
template <typename Type>
BracketCounts split_by_bracket(const typename Type::bits_t* data, int64_t n, Bracket<typename Type::bits_t> bracket,
                               typename Type::bits_t* inside, int64_t ahead_bytes = kAheadBytes) {
  const Limits<Type> limits(bracket);
#if defined(DSD_HAS_X86_TARGETS)
  if (isa() == Isa::avx512 && (sizeof(*data) > 2 || compresses_16_bits()))
    return Bracket512<Type>::run(data, n, limits, inside, ahead_bytes);
  if (isa() >= Isa::avx2) return Bracket256<Type>::run(data, n, limits, inside, ahead_bytes);
#endif
  return BracketPlain<Type>::run(data, n, limits, inside, ahead_bytes);
}

}  // namespace dsd::cpu
