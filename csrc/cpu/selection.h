// The k-th smallest magnitude key of each group of tensors, exactly, in one read of the weights: a sample brackets it,
// one pass counts what lies below and collects what lies inside, and the counts verify the bracket. Where they refute
// it, another sample is asked, and then radix digits, in one read or a few. A group is a tensor, or all of them.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "../ops.h"
#include "bracket.h"
#include "chunks.h"
#include "keys.h"
#include "quickselect.h"
#include "radix_select.h"
#include "workspace.h"

namespace dsd::cpu {

constexpr int64_t kSmallWeights = 4 * kChunkWeights;  // a tensor that the cache of a core holds: one task selects it

enum class Groups { each_tensor, all_tensors };

template <typename Type>
class Selector {
 public:
  using bits_t = typename Type::bits_t;

  // k has a value for each group; values outside [0, weights of the group] are clamped. Where is_early, a tensor is
  // selected by one task, which then calls when_selected(tensor, selection), while the tensor is in its cache.
  template <typename Visit>
  Selector(const Tensors& tensors, const int64_t* k, Groups groups, const Visit& when_selected)
      : are_tensors_(groups == Groups::each_tensor), groups_(are_tensors_ ? tensors.size() : 1) {
    for (const Tensor& tensor : tensors)
      sources_.push_back({static_cast<const bits_t*>(tensor.const_data_ptr()), tensor.numel()});
    chunks_ = make_chunks(sources_);
    splits_.resize(chunks_.size());
    for (size_t i = 0; i < sources_.size(); ++i) group_of(i).n += sources_[i].n;
    for (size_t i = 0; i < groups_.size(); ++i) prepare(groups_[i], k[i]);
    select(when_selected);
  }

  Selector(const Tensors& tensors, const int64_t* k, Groups groups)
      : Selector(tensors, k, groups, [](size_t, const Selection<bits_t>&) {}) {}

  ~Selector() { shared_workspace().trim(); }

  const std::vector<Chunk>& chunks() const { return chunks_; }

  // The selection of the group that a tensor belongs to; with k = 0 the threshold is 0, with none of its ties.
  const Selection<bits_t>& selection(size_t tensor) const { return groups_[index_of_group(tensor)].selection; }

  bool is_early(size_t tensor) const {
    const Group& group = groups_[index_of_group(tensor)];
    return group.is_small && group.k > 0;
  }

  // Of a chunk of a group with k > 0, of a tensor that is not early.
  Tally tally(size_t chunk) const {
    const Group& group = groups_[index_of_group(chunks_[chunk].tensor)];
    const bits_t threshold = group.selection.threshold;
    const BracketCounts& counts = splits_[chunk].counts;
    if (threshold == group.bracket.lo) return {counts.below, counts.at_lo};
    if (threshold == group.bracket.hi) return {counts.below_hi(), counts.at_hi};
    Tally tally = count<Type>(group.inside + splits_[chunk].begin, counts.inside, threshold);
    tally.below += counts.up_to_lo();
    return tally;
  }

 private:
  struct Source {
    const bits_t* weights;
    int64_t n;

    friend int64_t size_of(const Source& source) { return source.n; }
  };

  struct Group {
    int64_t n = 0;
    int64_t k = 0;
    bool is_small = false;   // one tensor, selected by the task of its first chunk
    bool is_pending = true;  // no pass has found a bracket of its k-th key yet
    Bracket<bits_t> bracket{};
    BracketCounts counts{};
    bits_t* inside = nullptr;
    int64_t capacity = 0;
    std::atomic<int64_t> n_inside = 0;
    Selection<bits_t> selection{};

    bits_t* scratch() const { return inside + capacity + kCollectSlack; }
    void reset() {
      bracket = {0, Type::nan_key};
      counts = {};
      n_inside = 0;
    }
    bool is_found() const { return counts.contain(k) && (is_at_bound() || counts.inside <= capacity); }
    bool is_at_bound() const { return k <= counts.up_to_lo() || k > counts.below_hi(); }
  };

  // What the pass has found in a chunk, and where it stored the keys inside.
  struct Split {
    BracketCounts counts;
    int64_t begin;
  };

  // A bracket on its way to the k-th of its keys, by their digits.
  struct Narrowing {
    int64_t k;
    std::unique_ptr<Histogram> histogram;  // null where it has arrived
  };

  size_t index_of_group(size_t tensor) const { return are_tensors_ ? tensor : 0; }
  Group& group_of(size_t tensor) { return groups_[index_of_group(tensor)]; }

  void prepare(Group& group, int64_t k) {
    group.k = std::min(std::max(k, int64_t(0)), group.n);
    group.is_small = are_tensors_ && group.n <= kSmallWeights;
    group.is_pending = group.k > 0;
    group.selection = {0, 0, group.n};  // with k = 0 none of the weights, however many are 0
    if (group.is_small || !group.is_pending) return;
    const int64_t n_sample = sample_size(group.n);
    const double share = 2 * margin_of_sample(n_sample, 0.5, kSafeMargin) / static_cast<double>(n_sample);
    const auto twice_expected = static_cast<int64_t>(2 * share * static_cast<double>(group.n));
    group.capacity = std::min(group.n, std::max(n_sample, twice_expected));
  }

  static Workspace& shared_workspace() {
    static thread_local Workspace workspace;
    return workspace;
  }

  static bits_t* scratch_of_thread() {
    static thread_local Workspace workspace;
    return workspace.reserve<bits_t>(kSmallWeights + kCollectSlack);
  }

  template <typename Visit>
  void select(const Visit& when_selected) {
    reserve();
    bracket_by_samples([](const Group&) { return 0; });
    split(when_selected);
    if (any_pending()) {
      bracket_by_samples([](const Group& group) { return second_seed(group.bracket); });
      split(when_selected);
    }
    if (any_pending()) {
      bracket_by_digits();
      split(when_selected);
      STD_TORCH_CHECK(!any_pending(), "dsd_kernels: the weights changed while they were selected");
    }
    for_each_large_group([&](size_t i) { finish(groups_[i]); });
  }

  void reserve() {
    int64_t n = 0;
    for (const Group& group : groups_)
      if (group.capacity > 0) n += 2 * (group.capacity + kCollectSlack);
    bits_t* free = shared_workspace().template reserve<bits_t>(n);
    for (Group& group : groups_) {
      group.inside = free;
      if (group.capacity > 0) free += 2 * (group.capacity + kCollectSlack);
    }
  }

  template <typename Work>
  void for_each_large_group(const Work& work) {
    std::vector<size_t> large;
    for (size_t i = 0; i < groups_.size(); ++i)
      if (groups_[i].capacity > 0) large.push_back(i);
    torch::stable::parallel_for(0, static_cast<int64_t>(large.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) work(large[i]);
    });
  }

  template <typename SeedOf>
  void bracket_by_samples(const SeedOf& seed_of) {
    for_each_large_group([&](size_t i) {
      if (groups_[i].is_pending) bracket_by_sample(i, seed_of(groups_[i]));
    });
  }

  // Runs of neighbours: to fetch a cache line and its page's address costs more than to read one key more from it.
  void bracket_by_sample(size_t i, uint32_t seed) {
    Group& group = groups_[i];
    group.reset();
    const int64_t n_sample = sample_size(group.n);
    const int64_t run = group.n > kChunkWeights ? 4 : 1;
    const SamplePlaces places(group.n, (n_sample + run - 1) / run, seed);
    const Source* source = &sources_[are_tensors_ ? i : 0];
    int64_t begin = 0;
    for (int64_t j = 0; j < n_sample; ++j) {
      const int64_t place = places[j / run];
      while (place - begin >= source->n) begin += (source++)->n;
      group.inside[j] = Type::key(source->weights[std::min(place - begin + j % run, source->n - 1)]);
    }
    group.bracket = bracket_of_sample<Type>(group.inside, n_sample, group.k, group.n, kSafeMargin, group.scratch());
  }

  // Read the weights of the groups that are pending: small ones are selected, of others the bracket is verified.
  template <typename Visit>
  void split(const Visit& when_selected) {
    for_each_chunk(chunks_, [&](int64_t i) {
      Group& group = group_of(chunks_[i].tensor);
      if (!group.is_pending) return;
      if (!group.is_small) return split_chunk(group, i);
      if (chunks_[i].begin != 0) return;
      select_small(group, chunks_[i].tensor);
      when_selected(chunks_[i].tensor, group.selection);
    });
    for (size_t i = 0; i < chunks_.size(); ++i) {
      Group& group = group_of(chunks_[i].tensor);
      if (group.is_pending) group.counts += splits_[i].counts;
    }
    for (Group& group : groups_) group.is_pending = group.is_pending && !group.is_small && !group.is_found();
  }

  void select_small(Group& group, size_t tensor) {
    const auto* weights = sources_[tensor].weights;
    const auto ranked = select_ranked<Type>(weights, group.n, group.k, scratch_of_thread(), bytes_to_next(tensor));
    group.selection = {ranked.key, group.k - ranked.below, ranked.equal};
  }

  // To fetch the next tensor while this one is read: its sample comes first, from places all over it.
  int64_t bytes_to_next(size_t tensor) const {
    if (tensor + 1 == sources_.size()) return kAheadBytes;
    return reinterpret_cast<intptr_t>(sources_[tensor + 1].weights) -
           reinterpret_cast<intptr_t>(sources_[tensor].weights);
  }

  void split_chunk(Group& group, int64_t i) {
    const Chunk& chunk = chunks_[i];
    bits_t* inside = scratch_of_thread();
    const bits_t* weights = sources_[chunk.tensor].weights + chunk.begin;
    splits_[i].counts = split_by_bracket<Type>(weights, chunk.end - chunk.begin, group.bracket, inside);
    const int64_t n = splits_[i].counts.inside;
    splits_[i].begin = group.n_inside.fetch_add(n, std::memory_order_relaxed);
    if (splits_[i].begin + n <= group.capacity)
      std::memcpy(group.inside + splits_[i].begin, inside, n * sizeof(bits_t));
  }

  bool any_pending() const {
    return std::any_of(groups_.begin(), groups_.end(), [](const Group& group) { return group.is_pending; });
  }

  // Narrow the brackets of pending groups by digits until they hold no more keys than there is room for.
  void bracket_by_digits() {
    std::vector<Narrowing> narrowings(groups_.size());
    for (size_t i = 0; i < groups_.size(); ++i) {
      if (!groups_[i].is_pending) continue;
      groups_[i].reset();
      narrowings[i] = {groups_[i].k, std::make_unique<Histogram>()};
    }
    while (
        std::any_of(narrowings.begin(), narrowings.end(), [](const auto& each) { return each.histogram != nullptr; }))
      narrow(narrowings);
  }

  // By one digit.
  void narrow(std::vector<Narrowing>& narrowings) {
    for_each_chunk(chunks_, [&](int64_t i) {
      const auto [tensor, begin, end] = chunks_[i];
      const size_t group = index_of_group(tensor);
      if (narrowings[group].histogram == nullptr) return;
      Multiversioned<CountLoop<Type>>::run(sources_[tensor].weights + begin, end - begin, groups_[group].bracket,
                                           narrowings[group].histogram.get());
    });
    for (size_t i = 0; i < groups_.size(); ++i) {
      auto& [k, histogram] = narrowings[i];
      if (histogram == nullptr) continue;
      const int64_t n = take_digit(*histogram, groups_[i].bracket, k);
      const bool is_narrow = n <= groups_[i].capacity || groups_[i].bracket.lo == groups_[i].bracket.hi;
      histogram = is_narrow ? nullptr : std::make_unique<Histogram>();
    }
  }

  void finish(Group& group) {
    const BracketCounts& counts = group.counts;
    const int64_t k = group.k;
    if (k <= counts.up_to_lo()) {
      group.selection = {group.bracket.lo, k - counts.below, counts.at_lo};
    } else if (k > counts.below_hi()) {
      group.selection = {group.bracket.hi, k - counts.below_hi(), counts.at_hi};
    } else {
      const int64_t rank = k - counts.up_to_lo();
      const auto ranked = select_ranked<Type>(group.inside, counts.inside, rank, group.scratch(), 0, group.bracket);
      group.selection = {ranked.key, rank - ranked.below, ranked.equal};
    }
  }

  bool are_tensors_;  // the groups: then group i is tensor i
  std::vector<Group> groups_;
  std::vector<Source> sources_;
  std::vector<Chunk> chunks_;
  std::vector<Split> splits_;
};

}  // namespace dsd::cpu
