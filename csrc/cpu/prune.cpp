// Select, make the masks, zero weights and momentum: after the passes of radix_select.h one read and write of weights
// and momentum and one write of bits; one read more where only some of the ties at the threshold are pruned.
#include "../ops.h"
#include "guards.h"
#include "isa.h"
#include "selection.h"
#include "words.h"

namespace dsd::cpu {
namespace {

// How many of its ties each chunk prunes: ties go in memory order, so earlier chunks take theirs first.
template <typename Type>
std::vector<int64_t> ties_per_chunk(const Selector<Type>& selector, size_t n_tensors) {
  std::vector<int64_t> ties, remaining;
  for (size_t tensor = 0; tensor < n_tensors; ++tensor) remaining.push_back(selector.selection(tensor).n_ties);
  for (size_t i = 0; i < selector.chunks().size(); ++i) {
    const Chunk& chunk = selector.chunks()[i];
    const auto& selection = selector.selection(chunk.tensor);
    const bool all = selection.n_ties == selection.n_equal;
    int64_t& left = remaining[chunk.tensor];
    const int64_t n = all ? chunk.end - chunk.begin : left > 0 ? std::min(left, selector.tally(i).equal) : 0;
    if (!all) left -= n;
    ties.push_back(n);
  }
  return ties;
}

// Zero a chunk's pruned weights and momentum (null where there is none), and write its mask.
template <typename Type>
struct PruneLoop {
  using bits_t = typename Type::bits_t;

  static DSD_INLINE void zero(bits_t* weights, const uint8_t* keep, int n) {
    for (int j = 0; j < n; ++j) weights[j] = keep[j] != 0 ? weights[j] : bits_t(0);
  }

  // Of the ties, the first n_ties in memory order are pruned; the others are kept.
  static DSD_INLINE void keep_late_ties(uint8_t* keep, const bits_t* keys, int n, bits_t threshold, int64_t& n_ties) {
    for (int j = 0; j < n; ++j) {
      const bool tie = keys[j] == threshold;
      keep[j] |= static_cast<uint8_t>(tie & (n_ties <= 0));
      n_ties -= tie;
    }
  }

  static DSD_INLINE uint64_t block(bits_t* param, bits_t* momentum_buffer, int n, bits_t threshold, bool prune_all_ties,
                                   int64_t& n_ties) {
    bits_t keys[kWordWeights];
    uint8_t keep[kWordWeights] = {};
    for (int j = 0; j < n; ++j) keys[j] = Type::key(param[j]);
    for (int j = 0; j < n; ++j) keep[j] = keys[j] > threshold;
    if (!prune_all_ties) keep_late_ties(keep, keys, n, threshold, n_ties);
    zero(param, keep, n);
    if (momentum_buffer != nullptr) zero(momentum_buffer, keep, n);
    return pack_word(keep);
  }

  static DSD_INLINE void run(bits_t* param, bits_t* momentum_buffer, uint8_t* mask, Chunk chunk, bits_t threshold,
                             int64_t n_ties) {
    const bool prune_all_ties = n_ties == chunk.end - chunk.begin;  // a whole chunk of ties is more than there can be
    for (int64_t i = chunk.begin; i < chunk.end; i += kWordWeights) {
      bits_t* momentum = momentum_buffer == nullptr ? nullptr : momentum_buffer + i;
      const int64_t n = chunk.end - i;
      const uint64_t word = n >= kWordWeights
                                ? block(param + i, momentum, kWordWeights, threshold, prune_all_ties, n_ties)
                                : block(param + i, momentum, static_cast<int>(n), threshold, prune_all_ties, n_ties);
      std::memcpy(mask + i / 8, &word, sizeof(word));
    }
  }
};

template <typename Type>
void prune_all(const Tensors& params, const Tensors& momentum_buffers, const Tensors& masks, const int64_t* k) {
  using bits_t = typename Type::bits_t;
  const Selector<Type> selector(params, k, Groups::each_tensor);
  const auto ties = ties_per_chunk(selector, params.size());
  const auto& chunks = selector.chunks();
  for_each_chunk(chunks, [&](int64_t i) {
    const size_t tensor = chunks[i].tensor;
    void* momentum = momentum_buffers.empty() ? nullptr : momentum_buffers[tensor].mutable_data_ptr();
    Multiversioned<PruneLoop<Type>>::run(static_cast<bits_t*>(params[tensor].mutable_data_ptr()),
                                         static_cast<bits_t*>(momentum),
                                         static_cast<uint8_t*>(masks[tensor].mutable_data_ptr()), chunks[i],
                                         selector.selection(tensor).threshold, ties[i]);
  });
}

}  // namespace

void prune_(const Tensors& params, const Tensors& momentum_buffers, const Tensors& masks, const Tensor& k) {
  if (params.empty()) return;
  guard_like("params", params, params);
  if (!momentum_buffers.empty()) {
    guard_like("momentum_buffers", momentum_buffers, params);
    guard_same_dtype("momentum_buffers", momentum_buffers, params);
  }
  guard_masks("masks", masks, params);
  guard_k(k, params);
  visit_dtype(params[0].scalar_type(), [&](auto type) {
    prune_all<decltype(type)>(params, momentum_buffers, masks, static_cast<const int64_t*>(k.const_data_ptr()));
  });
}

}  // namespace dsd::cpu
