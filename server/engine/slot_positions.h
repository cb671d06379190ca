// Rotary positions of a sequence's slots: as sent, as remembered, or 0, 1, 2, ...
#ifndef KVERN_SERVER_ENGINE_SLOT_POSITIONS_H_
#define KVERN_SERVER_ENGINE_SLOT_POSITIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/reuse.h"
#include "server/engine/sequence_memory.h"

namespace kvern::engine {

struct SlotShape {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t tokens = 0;
  const std::vector<int32_t>* lengths = nullptr;  // [layers * kv_heads], empty: all `tokens`

  int64_t Rows() const { return layers * kv_heads; }
  int64_t Length(int64_t row) const { return lengths->empty() ? tokens : (*lengths)[row]; }
};

struct SlotPositions {
  ScratchVector<int32_t> values;  // [tokens], or [layers, kv_heads, tokens] with -1 fills
  bool per_head = false;
  int64_t logical_tokens = 0;
};

// Extends what is remembered over the tokens that were appended since, or cuts it to a sequence
// that was rolled back. Of as many rows as were remembered.
SlotPositions Extend(const RememberedSlots& remembered, const SlotShape& shape);
// 0, 1, 2, ...
SlotPositions Consecutive(const SlotShape& shape);

// Keeps one row for all when the rows are equal.
SlotPositions Shared(SlotPositions positions, int64_t tokens);

// Size as the shape wants it; strictly ascending from 0 on, below logical_tokens. Errors:
// InvalidArgument with `field` as the field path.
absl::Status CheckPositions(const SlotPositions& positions, const SlotShape& shape,
                            const std::string& field);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_SLOT_POSITIONS_H_
