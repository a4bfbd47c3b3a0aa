// The k-th smallest magnitude of each tensor; its passes over memory are those of selection.h.
#include <limits>

#include "../ops.h"
#include "guards.h"
#include "selection.h"

namespace dsd::cpu {
namespace {

template <typename Type>
double magnitude(typename Type::bits_t key) {
  if (key == Type::nan_key) return std::numeric_limits<double>::quiet_NaN();
  typename Type::storage_t value;
  std::memcpy(&value, &key, sizeof(value));
  return static_cast<double>(static_cast<typename Type::compute_t>(value));
}

template <typename Type>
void write_magnitudes(const Tensors& tensors, const int64_t* k, Tensor& out) {
  using compute_t = typename Type::compute_t;
  const Selector<Type> selector(tensors, k, Groups::each_tensor);
  compute_t* values = static_cast<compute_t*>(out.mutable_data_ptr());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool selects_none = k[i] <= 0 || tensors[i].numel() == 0;
    values[i] = static_cast<compute_t>(selects_none ? -std::numeric_limits<double>::infinity()
                                                    : magnitude<Type>(selector.selection(i).threshold));
  }
}

}  // namespace

Tensor kth_magnitude(const Tensors& tensors, const Tensor& k) {
  using torch::headeronly::ScalarType;
  guard_k(k, tensors);
  guard_like("tensors", tensors, tensors);
  const bool is_double = !tensors.empty() && tensors[0].scalar_type() == ScalarType::Double;
  Tensor out = torch::stable::new_empty(k, {k.numel()}, is_double ? ScalarType::Double : ScalarType::Float);
  if (tensors.empty()) return out;
  visit_dtype(tensors[0].scalar_type(), [&](auto type) {
    write_magnitudes<decltype(type)>(tensors, static_cast<const int64_t*>(k.const_data_ptr()), out);
  });
  return out;
}

}  // namespace dsd::cpu
