// The ops that select: k stays on the device, and so does all that is found. Their memory is of torch's own allocator,
// which gives it again to the next call on the stream.
#include "../selection.h"

#include <torch/csrc/stable/ops.h>

#include "../../ops.h"
#include "device.h"
#include "guards.h"

namespace dsd::cuda {
namespace {

// Parts of one allocation, each where the widest access may begin.
class Workspace {
 public:
  template <typename value_t>
  int64_t add(int64_t n) {
    const int64_t begin = bytes_;
    bytes_ += (n * static_cast<int64_t>(sizeof(value_t)) + 15) / 16 * 16;
    return begin;
  }

  void allocate(const Tensor& beside) {
    memory_ = torch::stable::new_empty(beside, {bytes_}, ScalarType::Byte);
    data_ = static_cast<char*>(memory_.mutable_data_ptr());
  }

  template <typename value_t>
  value_t* at(int64_t begin) const {
    return reinterpret_cast<value_t*>(data_ + begin);
  }

 private:
  int64_t bytes_ = 0;
  Tensor memory_;
  char* data_ = nullptr;
};

void guard_integers(const char* name, const Tensor& values, const Tensors& tensors, size_t n) {
  STD_TORCH_CHECK(is_beside(values, tensors[0]) && values.is_contiguous() &&
                      values.numel() == static_cast<int64_t>(n) && values.scalar_type() == ScalarType::Long,
                  "dsd_kernels: ", name, ": expected ", n, " contiguous int64 values on the GPU of the tensors");
}

SelectRow row_of(const Tensor& tensor) {
  return {tensor.numel(), 0, tensor.mutable_data_ptr(), nullptr, nullptr, nullptr, 0};
}

// A selection of each tensor, or of all together where there is one k, and where its parts lie.
struct Call {
  Workspace workspace;
  std::vector<SelectRow> rows;
  Selection selection;
  Storage storage;
};

// `extra_words` of 64 bits are reserved first, at the start of the workspace.
Call prepare(const Tensors& tensors, const Tensor& k, bool is_pooled, int64_t extra_words) {
  Call call;
  Workspace& workspace = call.workspace;
  workspace.add<int64_t>(extra_words);
  const int64_t groups = workspace.add<Group>(k.numel());
  const int64_t histograms = workspace.add<unsigned long long>(k.numel() * kBins);
  const int64_t sample = workspace.add<char>(is_pooled ? kSampleBytes : 0);
  const int64_t itemsize = static_cast<int64_t>(tensors[0].element_size());
  int64_t n = 0;
  for (const Tensor& tensor : tensors) {
    call.rows.push_back(row_of(tensor));
    call.rows.back().start = n;
    n += tensor.numel();
  }
  std::vector<int64_t> staged;
  for (SelectRow& row : call.rows) {
    row.capacity = staging_capacity(is_pooled ? n : row.n, itemsize);
    const bool is_shared = is_pooled && !staged.empty();
    staged.push_back(is_shared ? staged[0] : workspace.add<char>(row.capacity * itemsize));
  }
  workspace.allocate(tensors[0]);
  for (size_t i = 0; i < tensors.size(); ++i) call.rows[i].staged = workspace.at<void*>(staged[i]);
  call.selection = {workspace.at<Group>(groups), workspace.at<unsigned long long>(histograms),
                    k.const_data_ptr<int64_t>(), workspace.at<void*>(sample)};
  call.storage = storage_of(tensors[0]);
  return call;
}

int64_t count_all_chunks(const Tensors& tensors) {
  int64_t n = 0;
  for (const Tensor& tensor : tensors) n += (tensor.numel() + SelectRow::kChunkWeights - 1) / SelectRow::kChunkWeights;
  return n;
}

}  // namespace

Tensor kth_magnitude(const Tensors& tensors, const Tensor& k) {
  if (tensors.empty()) return torch::stable::new_empty(k, {0}, ScalarType::Float);
  guard_like("tensors", tensors, tensors);
  guard_integers("k", k, tensors, tensors.size());
  const OnDeviceOf device(tensors[0]);
  const Call call = prepare(tensors, k, false, 0);
  const bool is_double = call.storage == Storage::float64;
  Tensor out = torch::stable::new_empty(k, {k.numel()}, is_double ? ScalarType::Double : ScalarType::Float);
  select_each(call.rows, call.storage, call.selection, device.stream());
  write_magnitudes(k.numel(), call.storage, call.selection, out.mutable_data_ptr(), device.stream());
  return out;
}

void prune_(const Tensors& params, const Tensors& momentum_buffers, const Tensors& masks, const Tensor& k) {
  if (params.empty()) return;
  guard_like("params", params, params);
  if (!momentum_buffers.empty()) {
    guard_like("momentum_buffers", momentum_buffers, params);
    STD_TORCH_CHECK(momentum_buffers[0].scalar_type() == params[0].scalar_type(),
                    "dsd_kernels: momentum_buffers: expected the dtype of the parameters");
  }
  guard_masks("masks", masks, params);
  guard_integers("k", k, params, params.size());
  const OnDeviceOf device(params[0]);
  Call call = prepare(params, k, false, count_all_chunks(params));
  for (size_t i = 0; i < params.size(); ++i) {
    if (!momentum_buffers.empty()) call.rows[i].momentum_buffer = momentum_buffers[i].mutable_data_ptr();
    call.rows[i].mask = static_cast<uint8_t*>(masks[i].mutable_data_ptr());
  }
  select_each(call.rows, call.storage, call.selection, device.stream());
  prune(call.rows, call.storage, call.selection, call.workspace.at<int64_t>(0), device.stream());
}

Tensor global_counts(const Tensors& tensors, const Tensor& k) {
  STD_TORCH_CHECK(!tensors.empty(), "dsd_kernels: tensors: expected at least one");
  guard_like("tensors", tensors, tensors);
  guard_integers("k", k, tensors, 1);
  const OnDeviceOf device(tensors[0]);
  const auto n = static_cast<int64_t>(tensors.size());
  const Call call = prepare(tensors, k, true, 2 * n);
  Tensor counts = torch::stable::new_empty(k, {n});
  auto* below = call.workspace.at<unsigned long long>(0);
  select_all(call.rows, call.storage, call.selection, device.stream());
  write_counts(call.rows, call.storage, call.selection, below, below + n, counts.mutable_data_ptr<int64_t>(),
               device.stream());
  return counts;
}

Tensor magnitude_histogram(const Tensors& tensors, const Tensor& prefixes, int64_t shift) {
  Tensor histograms = torch::stable::new_zeros(prefixes, {static_cast<int64_t>(tensors.size()), kCountedValues});
  if (tensors.empty()) return histograms;
  guard_like("tensors", tensors, tensors);
  guard_integers("prefixes", prefixes, tensors, tensors.size());
  STD_TORCH_CHECK(0 <= shift && shift < 8 * static_cast<int64_t>(tensors[0].element_size()) - 1,
                  "dsd_kernels: shift: expected a bit of the key, got ", shift);
  const OnDeviceOf device(tensors[0]);
  std::vector<SelectRow> rows;
  for (const Tensor& tensor : tensors) rows.push_back(row_of(tensor));
  count_digits(rows, storage_of(tensors[0]), prefixes.const_data_ptr<int64_t>(), static_cast<int>(shift),
               histograms.mutable_data_ptr<int64_t>(), device.stream());
  return histograms;
}

}  // namespace dsd::cuda
