// Masks as words: 64 weights are 64 bytes of bool in memory, or one 64-bit word packed.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "../sgd_update.h"

namespace dsd::cpu {

static_assert(std::endian::native == std::endian::little, "bit i % 8 of byte i / 8 is bit i of a word");

// Bit j of the word = keep[j], which must be 0 or 1. Eight bytes become eight bits by one multiplication.
DSD_INLINE uint64_t pack_word(const uint8_t keep[64]) {
  uint64_t word = 0;
  for (int byte = 0; byte < 8; ++byte) {
    uint64_t eight;
    std::memcpy(&eight, keep + 8 * byte, sizeof(eight));
    word |= ((eight * 0x0102040810204080ull) >> 56) << (8 * byte);
  }
  return word;
}

// keep[j] = bit j of the word, as 0 or 1. A byte is copied eight times, each copy keeps one of its bits, and a carry
// brings that bit down to the lowest place.
DSD_INLINE void unpack_word(uint64_t word, uint8_t keep[64]) {
  for (int byte = 0; byte < 8; ++byte) {
    const uint64_t copies = ((word >> (8 * byte)) & 0xff) * 0x0101010101010101ull;
    const uint64_t one_bit_each = copies & 0x8040201008040201ull;
    const uint64_t bools = ((one_bit_each + 0x7f7f7f7f7f7f7f7full) >> 7) & 0x0101010101010101ull;
    std::memcpy(keep + 8 * byte, &bools, sizeof(bools));
  }
}

}  // namespace dsd::cpu
