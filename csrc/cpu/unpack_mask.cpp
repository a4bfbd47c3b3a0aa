// Bits to bool masks: one read of n / 8 bytes, one write of n.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/shim_utils.h>

#include "../ops.h"
#include "chunks.h"
#include "guards.h"
#include "words.h"

namespace dsd::cpu {
namespace {

Tensor empty_bool_like(const Tensor& like) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(like.dim(), like.sizes().data(), like.strides().data(),
                                                  aoti_torch_dtype_bool(), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void unpack_chunk(const uint8_t* packed, uint8_t* mask, const Chunk& chunk) {
  for (int64_t i = chunk.begin; i < chunk.end; i += kWordWeights) {
    uint64_t word;
    std::memcpy(&word, packed + i / 8, sizeof(word));
    uint8_t keep[kWordWeights];
    unpack_word(word, keep);
    std::memcpy(mask + i, keep, std::min(kWordWeights, chunk.end - i));
  }
}

}  // namespace

Tensors unpack_mask(const Tensors& packed, const Tensors& like) {
  for (const Tensor& tensor : like) guard_dense("like", tensor);
  guard_masks("packed", packed, like);
  Tensors masks;
  masks.reserve(like.size());
  for (const Tensor& tensor : like) masks.push_back(empty_bool_like(tensor));
  const auto chunks = make_chunks(like);
  for_each_chunk(chunks, [&](int64_t i) {
    const size_t tensor = chunks[i].tensor;
    unpack_chunk(static_cast<const uint8_t*>(packed[tensor].const_data_ptr()),
                 static_cast<uint8_t*>(masks[tensor].mutable_data_ptr()), chunks[i]);
  });
  return masks;
}

}  // namespace dsd::cpu
