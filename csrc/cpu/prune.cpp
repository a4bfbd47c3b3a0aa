// Select, make the masks, zero weights and momentum: after the passes of selection.h one read and write of weights and
// momentum and one write of bits. A tensor that a core's cache holds is read from memory once for both.
#include "../ops.h"
#include "guards.h"
#include "isa.h"
#include "selection.h"
#include "words.h"

namespace dsd::cpu {
namespace {

// What a chunk loses: the keys below the cut, and the first n_ties of those equal to it.
template <typename bits_t>
struct Cut {
  bits_t key;
  int64_t n_ties;
};

// Of a chunk with n_equal ties at the threshold, n_ties of which are pruned; all or none need no order among them.
template <typename bits_t>
Cut<bits_t> make_cut(bits_t threshold, int64_t n_ties, int64_t n_equal) {
  if (n_ties == n_equal) return {static_cast<bits_t>(threshold + 1), 0};
  return {threshold, n_ties};
}

// Ties go in memory order, so earlier chunks take theirs first.
template <typename Type>
std::vector<Cut<typename Type::bits_t>> make_cuts(const Selector<Type>& selector, size_t n_tensors) {
  std::vector<Cut<typename Type::bits_t>> cuts;
  std::vector<int64_t> remaining;
  for (size_t tensor = 0; tensor < n_tensors; ++tensor) remaining.push_back(selector.selection(tensor).n_ties);
  for (size_t i = 0; i < selector.chunks().size(); ++i) {
    const size_t tensor = selector.chunks()[i].tensor;
    const auto& [threshold, n_ties, n_equal] = selector.selection(tensor);
    int64_t& left = remaining[tensor];
    if (selector.is_early(tensor) || n_ties == n_equal || left == 0) {
      cuts.push_back(make_cut(threshold, left, n_equal));
    } else {
      const int64_t equal = selector.tally(i).equal;
      cuts.push_back(make_cut(threshold, std::min(left, equal), equal));
      left -= std::min(left, equal);
    }
  }
  return cuts;
}

// Zero a chunk's pruned weights and momentum (null where there is none), and write its mask.
template <typename Type>
struct PruneLoop {
  using bits_t = typename Type::bits_t;

  static DSD_INLINE void zero(bits_t* weights, const uint8_t* keep, int n) {
    for (int j = 0; j < n; j += kLineBytes / sizeof(bits_t)) prefetch(weights + j, kAheadBytes);
    for (int j = 0; j < n; ++j) weights[j] = keep[j] != 0 ? weights[j] : bits_t(0);
  }

  // Keep the ties but for the first n_ties in memory order.
  static DSD_INLINE uint64_t keep_late_ties(uint8_t* keep, const bits_t* keys, int n, Cut<bits_t>& cut) {
    uint8_t is_tie[kWordWeights] = {};
    for (int j = 0; j < n; ++j) is_tie[j] = keys[j] == cut.key;
    uint64_t ties = pack_word(is_tie);
    const uint64_t kept = pack_word(keep) & ~ties;
    for (; ties != 0 && cut.n_ties > 0; --cut.n_ties) ties &= ties - 1;
    unpack_word(kept | ties, keep);
    return kept | ties;
  }

  static DSD_INLINE uint64_t block(bits_t* param, bits_t* momentum_buffer, int n, Cut<bits_t>& cut) {
    bits_t keys[kWordWeights];
    uint8_t keep[kWordWeights] = {};
    for (int j = 0; j < n; ++j) keys[j] = Type::key(param[j]);
    for (int j = 0; j < n; ++j) keep[j] = keys[j] >= cut.key;
    const uint64_t word = cut.n_ties > 0 ? keep_late_ties(keep, keys, n, cut) : pack_word(keep);
    zero(param, keep, n);
    if (momentum_buffer != nullptr) zero(momentum_buffer, keep, n);
    return word;
  }

  static DSD_INLINE void run(bits_t* param, bits_t* momentum_buffer, uint8_t* mask, Chunk chunk, Cut<bits_t> cut) {
    for (int64_t i = chunk.begin; i < chunk.end; i += kWordWeights) {
      bits_t* momentum = momentum_buffer == nullptr ? nullptr : momentum_buffer + i;
      const int64_t n = chunk.end - i;
      const uint64_t word = n >= kWordWeights ? block(param + i, momentum, kWordWeights, cut)
                                              : block(param + i, momentum, static_cast<int>(n), cut);
      std::memcpy(mask + i / 8, &word, sizeof(word));
    }
  }
};

template <typename Type>
void prune_all(const Tensors& params, const Tensors& momentum_buffers, const Tensors& masks, const int64_t* k) {
  using bits_t = typename Type::bits_t;
  const auto prune = [&](const Chunk& chunk, const Cut<bits_t>& cut) {
    const size_t tensor = chunk.tensor;
    void* momentum = momentum_buffers.empty() ? nullptr : momentum_buffers[tensor].mutable_data_ptr();
    Multiversioned<PruneLoop<Type>>::run(static_cast<bits_t*>(params[tensor].mutable_data_ptr()),
                                         static_cast<bits_t*>(momentum),
                                         static_cast<uint8_t*>(masks[tensor].mutable_data_ptr()), chunk, cut);
  };
  const Selector<Type> selector(params, k, Groups::each_tensor, [&](size_t tensor, const Selection<bits_t>& selection) {
    prune({tensor, 0, params[tensor].numel()}, make_cut(selection.threshold, selection.n_ties, selection.n_equal));
  });
  const auto cuts = make_cuts(selector, params.size());
  for_each_chunk(selector.chunks(), [&](int64_t i) {
    if (!selector.is_early(selector.chunks()[i].tensor)) prune(selector.chunks()[i], cuts[i]);
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
