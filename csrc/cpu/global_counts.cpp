// How many of the k smallest magnitudes of all tensors together belong to each; one read of the weights, as in
// selection.h, whose pass counts them too.
#include "../ops.h"
#include "guards.h"
#include "selection.h"

namespace dsd::cpu {
namespace {

template <typename Type>
void write_counts(const Tensors& tensors, int64_t k, int64_t* counts) {
  std::fill(counts, counts + tensors.size(), 0);
  const Selector<Type> selector(tensors, &k, Groups::all_tensors);
  if (k <= 0) return;
  int64_t n_ties = selector.selection(0).n_ties;
  for (size_t i = 0; i < selector.chunks().size(); ++i) {
    const Tally tally = selector.tally(i);
    const int64_t ties = std::min(n_ties, tally.equal);  // of earlier tensors first
    counts[selector.chunks()[i].tensor] += tally.below + ties;
    n_ties -= ties;
  }
}

}  // namespace

Tensor global_counts(const Tensors& tensors, const Tensor& k) {
  STD_TORCH_CHECK(!tensors.empty(), "dsd_kernels: tensors: expected at least one");
  guard_like("tensors", tensors, tensors);
  STD_TORCH_CHECK(k.is_cpu() && k.numel() == 1 && k.scalar_type() == torch::headeronly::ScalarType::Long,
                  "dsd_kernels: k: expected one int64 value on the CPU");
  Tensor counts = torch::stable::new_empty(k, {static_cast<int64_t>(tensors.size())});
  visit_dtype(tensors[0].scalar_type(), [&](auto type) {
    write_counts<decltype(type)>(tensors, *k.const_data_ptr<int64_t>(), counts.mutable_data_ptr<int64_t>());
  });
  return counts;
}

}  // namespace dsd::cpu
