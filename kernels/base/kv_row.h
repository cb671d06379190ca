// One token's row of one head: to f32, from f32, and as bytes, at any stride.
#ifndef KVERN_KERNELS_BASE_KV_ROW_H_
#define KVERN_KERNELS_BASE_KV_ROW_H_

#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/base/kv_ref.h"

namespace kvern {

// x [head_dim] = the row whose first element is at `row`.
inline void LoadKvRow(const KvRef& ref, const std::byte* row, float* x) {
  VisitDType(ref.dtype, [&](auto tag) {
    for (int64_t d = 0; d < ref.head_dim; ++d) {
      typename decltype(tag)::type value;
      std::memcpy(&value, row + d * ref.strides.dim, sizeof(value));
      x[d] = ToFloat(value);
    }
  });
}

// Rounds once. Every NaN becomes the same one: which of two NaN operands survives an addition is
// not the same on all processors.
inline void StoreKvRow(const KvRef& ref, const float* x, std::byte* row) {
  VisitDType(ref.dtype, [&](auto tag) {
    for (int64_t d = 0; d < ref.head_dim; ++d) {
      const float value = x[d] == x[d] ? x[d] : std::numeric_limits<float>::quiet_NaN();
      const auto rounded = FromFloat<typename decltype(tag)::type>(value);
      std::memcpy(row + d * ref.strides.dim, &rounded, sizeof(rounded));
    }
  });
}

// Memory of one row and the distance between its elements.
struct RowBytes {
  std::byte* data;
  int64_t dim_stride;  // bytes
};

// Moves elements of `size` bytes as they are; the rows do not overlap.
inline void CopyRowBytes(RowBytes from, RowBytes to, int64_t count, int64_t size) {
  if (from.dim_stride == size && to.dim_stride == size) {
    std::memcpy(to.data, from.data, count * size);
    return;
  }
  for (int64_t d = 0; d < count; ++d) {
    std::memcpy(to.data + d * to.dim_stride, from.data + d * from.dim_stride, size);
  }
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_KV_ROW_H_
