// Many tensors in one launch: a table of their addresses goes to the kernel by value, so that nothing is copied to the
// device before, and a block finds its chunk in it. Lists that are longer than a table take several launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../sgd_update.h"

namespace dsd::cuda {

constexpr int kTableTensors = 320;
constexpr size_t kParameterBytes = 32764;  // what a launch takes, from CUDA 12.1 on

// Row has the size `n` of a tensor, its addresses, and kChunkWeights, how many weights a block takes.
template <typename Row>
struct Table {
  int32_t n_tensors;
  int32_t first_tensor;                    // the place in the whole list of rows[0]
  int32_t first_chunk[kTableTensors + 1];  // of each tensor, numbered through the whole list; then the end
  Row rows[kTableTensors];

  int32_t n_chunks() const { return first_chunk[n_tensors] - first_chunk[0]; }
};

// A chunk: which row's, its number in the whole list, its first weight and how many it has.
struct Place {
  int32_t row;
  int32_t chunk;
  int64_t first;
  int32_t count;
};

// The chunk of a block: of the last tensor that begins no later, since empty ones have none.
template <typename Row>
DSD_INLINE Place locate(const Table<Row>& table, int32_t block) {
  const int32_t chunk = table.first_chunk[0] + block;
  int32_t row = 0;
  for (int32_t end = table.n_tensors; end - row > 1;) {
    const int32_t middle = (row + end) / 2;
    if (table.first_chunk[middle] <= chunk)
      row = middle;
    else
      end = middle;
  }
  const int64_t first = static_cast<int64_t>(chunk - table.first_chunk[row]) * Row::kChunkWeights;
  const int64_t left = table.rows[row].n - first;
  return {row, chunk, first, static_cast<int32_t>(left < Row::kChunkWeights ? left : Row::kChunkWeights)};
}

template <typename Row>
int32_t count_chunks(const Row& row) {
  return static_cast<int32_t>((row.n + Row::kChunkWeights - 1) / Row::kChunkWeights);
}

// The tables of a list, in order.
template <typename Row>
std::vector<Table<Row>> make_tables(const std::vector<Row>& rows) {
  static_assert(sizeof(Table<Row>) + 512 <= kParameterBytes, "leave room for the other arguments");
  std::vector<Table<Row>> tables;
  int32_t chunk = 0;
  for (size_t first = 0; first < rows.size(); first += kTableTensors) {
    Table<Row>& table = tables.emplace_back();
    table.n_tensors = static_cast<int32_t>(std::min<size_t>(rows.size() - first, kTableTensors));
    table.first_tensor = static_cast<int32_t>(first);
    for (int32_t i = 0; i < table.n_tensors; ++i) {
      table.rows[i] = rows[first + i];
      table.first_chunk[i] = chunk;
      chunk += count_chunks(table.rows[i]);
    }
    table.first_chunk[table.n_tensors] = chunk;
  }
  return tables;
}

}  // namespace dsd::cuda
