// In which order the rows of a packed table are coded.
#ifndef KVERN_KERNELS_CPU_CODING_ORDER_H_
#define KVERN_KERNELS_CPU_CODING_ORDER_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/packed_layout.h"

namespace kvern::cpu {

// Indices of `table`, each once. A table lists head after head; here the heads of a layer take
// turns, so that they find the angles and the blocks of their tokens in cache.
inline std::vector<int32_t> CodingOrder(std::span<const PackedRow> table) {
  const auto rows = static_cast<int32_t>(table.size());
  std::vector<int32_t> order;
  order.reserve(rows);
  std::vector<int32_t> starts;  // of the heads of one layer, and their end
  for (int32_t row = 0; row < rows;) {
    const int64_t layer = table[row].layer;
    starts.clear();
    int32_t longest = 0;
    for (; row < rows && table[row].layer == layer; ++row) {
      if (starts.empty() || table[row].kv_head != table[row - 1].kv_head) starts.push_back(row);
      longest = std::max(longest, row + 1 - starts.back());
    }
    starts.push_back(row);
    for (int32_t turn = 0; turn < longest; ++turn) {
      for (size_t head = 0; head + 1 < starts.size(); ++head) {
        if (starts[head] + turn < starts[head + 1]) order.push_back(starts[head] + turn);
      }
    }
  }
  return order;
}

// A row of a packed table to code, and the row that is likely to be next; null: none.
struct CodingItem {
  const PackedRow& row;
  const PackedRow* next;

  // Whether `next` is about tokens that no row was about yet.
  bool NextIsNew() const { return next != nullptr && next->first_slot != row.first_slot; }
};
// Item `item` of `order`, which `threads` share.
inline CodingItem ItemOf(std::span<const PackedRow> table, std::span<const int32_t> order,
                         int64_t item, int threads) {
  const int64_t next = item + threads;
  return {table[order[item]], next < std::ssize(order) ? &table[order[next]] : nullptr};
}

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_CODING_ORDER_H_
