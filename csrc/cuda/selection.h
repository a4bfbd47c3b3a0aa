// The k-th smallest magnitude of each tensor, exactly, for all tensors in one set of launches. Nothing is decided on
// the host: grids depend on sizes only, and what a pass finds is left on the device for the next.
//
// 1. sample: a block a tensor. One that the sample would hold whole is selected at once; of others the sample brackets
//    the k-th key. For one k of all tensors, a block each gathers the tensor's share of one sample.
// 2. bracket: one read of the weights counts the keys below, at and inside the bracket and stages those inside. The
//    last block of a search verifies the bracket by the counts.
// 3. digits: radix histograms of what is left, the staged keys or, where the counts refute the bracket or too many are
//    inside, all weights; as many launches as a key has digits. The last block of a search takes the digit.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "formats.h"
#include "search.h"

namespace dsd::cuda {

struct SelectRow {
  static constexpr int kChunkWeights = 16384;
  int64_t n;
  int64_t start;  // the weights of earlier rows
  void* weights;
  void* momentum_buffer;  // null where there is none
  uint8_t* mask;          // to be written; null for a selection alone
  void* staged;           // room for `capacity` keys; the same for all rows where they are searched together
  int64_t capacity;
};

// The state of a selection among the weights of one tensor, or of all.
struct Group {
  int64_t n;
  int64_t k;  // clamped to [0, n]
  Search search;
  int64_t n_staged;  // where the search goes on; 0 stands for the weights
  unsigned long long below;
  unsigned long long at_lo;
  unsigned long long inside;
  unsigned long long at_hi;
  uint32_t n_blocks;   // that take part in a pass over the weights
  uint32_t n_arrived;  // of those that take part in the pass under way
};

constexpr int kSampleBytes = 32 * 1024;

// Keys that may be staged of a search among n weights: twice what a good bracket holds. The sample holds small ones
// whole.
inline int64_t staging_capacity(int64_t n, int64_t itemsize) { return n * itemsize <= kSampleBytes ? 0 : (n + 7) / 8; }

// Where the states of a selection lie on the device.
struct Selection {
  Group* groups;
  unsigned long long* histograms;  // kBins of each group
  const int64_t* k;                // of each group
  void* sample;                    // of all rows together: kSampleBytes for select_all
};

// The k-th key of each row.
void select_each(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection, cudaStream_t stream);
// That of all rows together, in group 0.
void select_all(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection, cudaStream_t stream);

// After select_each: the magnitudes, as float, or double of double; -inf for k = 0.
void write_magnitudes(int64_t n_groups, Storage storage, const Selection& selection, void* values, cudaStream_t stream);
// After select_each: mask, zero weights and momentum. `ties` has room for a number a chunk.
void prune(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection, int64_t* ties,
           cudaStream_t stream);
// After select_all: how many of the k smallest each row has; `below` and `equal` have room for a number a row.
void write_counts(const std::vector<SelectRow>& rows, Storage storage, const Selection& selection,
                  unsigned long long* below, unsigned long long* equal, int64_t* counts, cudaStream_t stream);

// Apart from a selection under way: how many weights of each row have each value of the 8-bit digit at `shift` of their
// keys, among those whose higher digits are the row's prefix. Added to `histograms`, kCountedValues a row.
void count_digits(const std::vector<SelectRow>& rows, Storage storage, const int64_t* prefixes, int shift,
                  int64_t* histograms, cudaStream_t stream);

}  // namespace dsd::cuda
