// The weights of many tensors as one table of chunks, so that one parallel region serves a whole list.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../ops.h"

namespace dsd::cpu {

constexpr int64_t kWordWeights = 64;            // a mask is read and written in words of 64 weights
constexpr int64_t kChunkWeights = 1 << 15;      // a multiple of kWordWeights
constexpr int64_t kSerialWeights = 200 * 1000;  // below this, waking threads costs more than it saves

struct Chunk {
  size_t tensor;
  int64_t begin;
  int64_t end;
};

inline int64_t size_of(const Tensor& tensor) { return tensor.numel(); }

// The chunks of a list of tensors, or of whatever else size_of is defined for.
template <typename List>
std::vector<Chunk> make_chunks(const List& list) {
  std::vector<Chunk> chunks;
  for (size_t tensor = 0; tensor < list.size(); ++tensor) {
    const int64_t n = size_of(list[tensor]);
    for (int64_t begin = 0; begin < n; begin += kChunkWeights)
      chunks.push_back({tensor, begin, std::min(n, begin + kChunkWeights)});
  }
  return chunks;
}

// Call work(chunk index) for every chunk: in parallel, or serially where the whole list is small.
template <typename Work>
void for_each_chunk(const std::vector<Chunk>& chunks, const Work& work) {
  int64_t n_weights = 0;
  for (const Chunk& chunk : chunks) n_weights += chunk.end - chunk.begin;
  const int64_t n_chunks = static_cast<int64_t>(chunks.size());
  if (n_weights < kSerialWeights) {
    for (int64_t i = 0; i < n_chunks; ++i) work(i);
    return;
  }
  torch::stable::parallel_for(0, n_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

}  // namespace dsd::cpu
