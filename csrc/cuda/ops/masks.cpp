// bool masks to bits and back.
#include "../masks.h"

#include <torch/csrc/stable/ops.h>

#include "../../ops.h"
#include "device.h"
#include "guards.h"

namespace dsd::cuda {
namespace {

Tensor empty_bool_like(const Tensor& like) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(like.dim(), like.sizes().data(), like.strides().data(),
                                                  aoti_torch_dtype_bool(), aoti_torch_device_type_cuda(),
                                                  like.get_device(), &handle));
  return Tensor(handle);
}

std::vector<MaskRow> make_rows(const Tensors& masks, const Tensors& packed) {
  std::vector<MaskRow> rows;
  rows.reserve(masks.size());
  for (size_t i = 0; i < masks.size(); ++i)
    rows.push_back({masks[i].numel(), static_cast<uint8_t*>(masks[i].mutable_data_ptr()),
                    static_cast<uint8_t*>(packed[i].mutable_data_ptr())});
  return rows;
}

// Masks may lie on several GPUs: those of one in a row are one launch.
template <typename Work>
void for_each_device(const Tensors& masks, const Tensors& packed, const Work& work) {
  for (size_t first = 0, end = 0; first < masks.size(); first = end) {
    while (end < masks.size() && masks[end].get_device() == masks[first].get_device()) ++end;
    const OnDeviceOf device(masks[first]);
    work(make_rows({masks.begin() + first, masks.begin() + end}, {packed.begin() + first, packed.begin() + end}),
         device.stream());
  }
}

}  // namespace

Tensors pack_mask(const Tensors& masks) {
  Tensors packed;
  packed.reserve(masks.size());
  for (const Tensor& mask : masks) {
    STD_TORCH_CHECK(mask.is_cuda() && is_dense(mask) && mask.scalar_type() == ScalarType::Bool,
                    "dsd_kernels: masks: expected bool tensors on a GPU, without gaps or overlap");
    packed.push_back(torch::stable::new_empty(mask, {packed_bytes(mask.numel())}, ScalarType::Byte));
  }
  for_each_device(masks, packed, pack);
  return packed;
}

Tensors unpack_mask(const Tensors& packed, const Tensors& like) {
  Tensors masks;
  masks.reserve(like.size());
  for (size_t i = 0; i < like.size(); ++i) {
    STD_TORCH_CHECK(like[i].is_cuda() && is_dense(like[i]),
                    "dsd_kernels: like: expected tensors on a GPU, without gaps or overlap");
    masks.push_back(empty_bool_like(like[i]));
  }
  guard_masks("packed", packed, like);
  for_each_device(masks, packed, unpack);
  return masks;
}

}  // namespace dsd::cuda
