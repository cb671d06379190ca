// Packed rows and keep lists as the planner would make them, for tests of the codecs.
#ifndef KVERN_TESTS_SUPPORT_PACKED_CASE_H_
#define KVERN_TESTS_SUPPORT_PACKED_CASE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/backend.h"

namespace kvern::support {

// Every `step`-th token of each head, from `first` on.
inline KeepList KeepEvery(LayerRefs rows, int64_t first, int64_t step) {
  KeepList keep;
  keep.layers = static_cast<int64_t>(rows.size());
  keep.kv_heads = rows.empty() ? 0 : rows[0].kv_heads;
  keep.offsets.push_back(0);
  for (const KvRef& ref : rows) {
    for (int64_t head = 0; head < ref.kv_heads; ++head) {
      for (int64_t token = first; token < ref.Length(head); token += step) {
        keep.tokens.push_back(static_cast<int32_t>(token));
      }
      keep.offsets.push_back(static_cast<int64_t>(keep.tokens.size()));
    }
  }
  return keep;
}

struct PackedCase {
  std::vector<PackedRow> table;
  int64_t bytes = 0;  // of `packed`
};

// Rows of at most 64 slots of one codec; where it wants all 64, a shorter one is raw16.
inline PackedCase PlanRows(LayerRefs rows, const KeepList& keep, CodecSpec codec) {
  PackedCase packed;
  for (int64_t layer = 0; layer < keep.layers; ++layer) {
    for (int64_t head = 0; head < keep.kv_heads; ++head) {
      const int64_t count = keep.Count(layer, head);
      for (int64_t slot = 0; slot < count; slot += kPackedBlockTokens) {
        PackedRow row = {};
        row.layer = layer;
        row.kv_head = head;
        row.first_slot = slot;
        row.tokens = std::min<int64_t>(kPackedBlockTokens, count - slot);
        const CodecSpec of_block = CodecOfBlock(codec, row.tokens);
        row.codec = static_cast<int64_t>(of_block.id);
        row.flags = of_block.flags;
        row.byte_offset = packed.bytes;
        packed.bytes +=
            AlignUp(BlockBytes(of_block.id, rows[layer].dtype, row.tokens, rows[layer].head_dim),
                    kPackedBlockAlign);
        packed.table.push_back(row);
      }
    }
  }
  return packed;
}

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_PACKED_CASE_H_
