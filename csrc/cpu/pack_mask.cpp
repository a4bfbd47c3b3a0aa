// bool masks to bits: one read of n bytes, one write of n / 8.
#include <torch/csrc/stable/ops.h>

#include "../ops.h"
#include "chunks.h"
#include "guards.h"
#include "words.h"

namespace dsd::cpu {
namespace {

void pack_chunk(const uint8_t* mask, uint8_t* packed, const Chunk& chunk) {
  for (int64_t i = chunk.begin; i < chunk.end; i += kWordWeights) {
    uint8_t keep[kWordWeights] = {};
    // a bool that was viewed from other bytes may be any byte but 0
    const int64_t n = std::min(kWordWeights, chunk.end - i);
    for (int64_t j = 0; j < n; ++j) keep[j] = mask[i + j] != 0;
    const uint64_t word = pack_word(keep);
    std::memcpy(packed + i / 8, &word, sizeof(word));
  }
}

}  // namespace

Tensors pack_mask(const Tensors& masks) {
  Tensors packed;
  packed.reserve(masks.size());
  for (const Tensor& mask : masks) {
    guard_dense("masks", mask);
    STD_TORCH_CHECK(mask.scalar_type() == torch::headeronly::ScalarType::Bool,
                    "dsd_kernels: masks: expected bool tensors");
    packed.push_back(torch::stable::new_empty(mask, {packed_bytes(mask.numel())}, torch::headeronly::ScalarType::Byte));
  }
  const auto chunks = make_chunks(masks);
  for_each_chunk(chunks, [&](int64_t i) {
    const size_t tensor = chunks[i].tensor;
    pack_chunk(static_cast<const uint8_t*>(masks[tensor].const_data_ptr()),
               static_cast<uint8_t*>(packed[tensor].mutable_data_ptr()), chunks[i]);
  });
  return packed;
}

}  // namespace dsd::cpu
