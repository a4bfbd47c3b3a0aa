// Select, make the masks, zero weights and momentum: after the passes of radix_select.h one read and write of weights
// and momentum and one write of bits; one read more where only some of the ties at the threshold are pruned.
#include "../ops.h"
#include "guards.h"
#include "isa.h"
#include "radix_select.h"
#include "words.h"

namespace dsd::cpu {
namespace {

template <typename Type>
int64_t count_equal(const void* weights, const Chunk& chunk, typename Type::bits_t threshold) {
  int64_t n = 0;
  for (int64_t i = chunk.begin; i < chunk.end; ++i) n += load_key<Type>(weights, i) == threshold;
  return n;
}

// How many of its ties each chunk prunes: ties go in memory order, so earlier chunks take theirs first.
template <typename Type>
std::vector<int64_t> ties_per_chunk(const Tensors& params, const std::vector<Chunk>& chunks,
                                    const std::vector<Selection<typename Type::bits_t>>& selections) {
  std::vector<int64_t> ties(chunks.size());
  for_each_chunk(chunks, [&](int64_t i) {
    const auto& selection = selections[chunks[i].tensor];
    const bool all = selection.n_ties == selection.n_equal;
    ties[i] = all ? chunks[i].end - chunks[i].begin
                  : count_equal<Type>(params[chunks[i].tensor].const_data_ptr(), chunks[i], selection.threshold);
  });
  std::vector<int64_t> remaining;
  for (const auto& selection : selections) remaining.push_back(selection.n_ties);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const auto& selection = selections[chunks[i].tensor];
    if (selection.n_ties == selection.n_equal) continue;
    int64_t& left = remaining[chunks[i].tensor];
    ties[i] = std::min(ties[i], left);
    left -= ties[i];
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
  const auto chunks = make_chunks(params);
  const auto selections = radix_select<Type>(params, k);
  const auto ties = ties_per_chunk<Type>(params, chunks, selections);
  for_each_chunk(chunks, [&](int64_t i) {
    const size_t tensor = chunks[i].tensor;
    void* momentum = momentum_buffers.empty() ? nullptr : momentum_buffers[tensor].mutable_data_ptr();
    Multiversioned<PruneLoop<Type>>::run(
        static_cast<bits_t*>(params[tensor].mutable_data_ptr()), static_cast<bits_t*>(momentum),
        static_cast<uint8_t*>(masks[tensor].mutable_data_ptr()), chunks[i], selections[tensor].threshold, ties[i]);
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
