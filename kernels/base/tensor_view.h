// Non-owning strided views: what ops compute on, in host and device code.
#ifndef KVERN_KERNELS_BASE_TENSOR_VIEW_H_
#define KVERN_KERNELS_BASE_TENSOR_VIEW_H_

#include <cstdint>

#include "kernels/base/host_device.h"

namespace kvern {

// Copy it freely; it never outlives the call it is passed to. Strides count elements, on every
// axis.
template <class T, int N>
struct TensorView {
  T* data = nullptr;
  int64_t shape[N] = {};
  int64_t stride[N] = {};

  // Address of element (outer..., 0, ...): missing trailing indices are 0.
  template <class... Index>
  KVERN_HD T* At(Index... index) const {
    static_assert(sizeof...(Index) <= N, "more indices than axes");
    const int64_t at[] = {static_cast<int64_t>(index)...};
    int64_t offset = 0;
    for (int axis = 0; axis < static_cast<int>(sizeof...(Index)); ++axis) {
      offset += at[axis] * stride[axis];
    }
    return data + offset;
  }
  template <class... Index>
  KVERN_HD T& operator()(Index... index) const {
    static_assert(sizeof...(Index) == N, "one index per axis");
    return *At(index...);
  }
  KVERN_HD int64_t Size() const {
    int64_t size = 1;
    for (int axis = 0; axis < N; ++axis) size *= shape[axis];
    return size;
  }
  KVERN_HD operator TensorView<const T, N>() const {
    TensorView<const T, N> view;
    view.data = data;
    for (int axis = 0; axis < N; ++axis) {
      view.shape[axis] = shape[axis];
      view.stride[axis] = stride[axis];
    }
    return view;
  }
};

// Dense row-major view over `data`.
template <class T, class... Extent>
KVERN_HD TensorView<T, sizeof...(Extent)> DenseView(T* data, Extent... extent) {
  constexpr int kAxes = sizeof...(Extent);
  TensorView<T, kAxes> view;
  view.data = data;
  const int64_t extents[] = {static_cast<int64_t>(extent)...};
  int64_t stride = 1;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    view.shape[axis] = extents[axis];
    view.stride[axis] = stride;
    stride *= extents[axis];
  }
  return view;
}

using ScoreView = TensorView<float, 3>;  // [layers, kv_heads, tokens], higher = keep
using ConstScoreView = TensorView<const float, 3>;
// [layers, kv_heads, tokens] u8, 1 = in the set. A stride of 0 shares one row between heads or
// layers.
using MaskView = TensorView<const uint8_t, 3>;

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_TENSOR_VIEW_H_
