// Which source tokens each (layer, kv_head) keeps.
#ifndef KVERN_KERNELS_BASE_KEEP_LIST_H_
#define KVERN_KERNELS_BASE_KEEP_LIST_H_

#include <cstdint>

#include "kernels/base/reuse.h"
#include "kernels/base/tensor_view.h"

namespace kvern {

// Physical source indices, ascending within a row; row = layer * kv_heads + kv_head.
struct KeepList {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  ScratchVector<int64_t> offsets;  // [layers * kv_heads + 1] into tokens
  ScratchVector<int32_t> tokens;

  int64_t Count(int64_t layer, int64_t head) const {
    const int64_t row = layer * kv_heads + head;
    return offsets[row + 1] - offsets[row];
  }
  const int32_t* Row(int64_t layer, int64_t head) const {
    return tokens.data() + offsets[layer * kv_heads + head];
  }
  int32_t* Row(int64_t layer, int64_t head) {
    return tokens.data() + offsets[layer * kv_heads + head];
  }
  // Rows sized by `counts` [layers, kv_heads]; the indices are left for a selector to fill.
  static KeepList WithCounts(TensorView<const int32_t, 2> counts) {
    KeepList keep;
    keep.layers = counts.shape[0];
    keep.kv_heads = counts.shape[1];
    keep.offsets.reserve(keep.layers * keep.kv_heads + 1);
    keep.offsets.push_back(0);
    for (int64_t layer = 0; layer < keep.layers; ++layer) {
      for (int64_t head = 0; head < keep.kv_heads; ++head) {
        keep.offsets.push_back(keep.offsets.back() + counts(layer, head));
      }
    }
    keep.tokens.resize(keep.offsets.back());
    return keep;
  }
};

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_KEEP_LIST_H_
