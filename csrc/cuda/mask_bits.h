// Four bools as four bits, and back, in one 32-bit register; for host and device.
#pragma once

#include <cstdint>

#include "../sgd_update.h"

namespace dsd::cuda {

// Bit j of the result: whether byte j is not 0. A carry tells each byte's lower seven bits; the product brings the four
// marks together.
DSD_INLINE uint32_t pack_four(uint32_t bytes) {
  const uint32_t marks = (((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes) >> 7 & 0x01010101u;
  return marks * 0x01020408u >> 24 & 0xf;
}

// Byte j of the result: bit j, as 0 or 1.
DSD_INLINE uint32_t unpack_four(uint32_t bits) { return (bits & 0xf) * 0x00204081u & 0x01010101u; }

}  // namespace dsd::cuda
