// A strided view of any type and number of axes, packed into dense memory and back.
#ifndef KVERN_KERNELS_CUDA_STRIDED_BYTES_H_
#define KVERN_KERNELS_CUDA_STRIDED_BYTES_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/base/tensor_view.h"

namespace kvern::cuda {

class StridedBytes {
 public:
  static constexpr int kMostAxes = 4;

  // Writes go through it only if T is not const.
  template <class T, int N>
  static StridedBytes Of(const TensorView<T, N>& view) {
    static_assert(N <= kMostAxes);
    StridedBytes bytes;
    bytes.data_ = reinterpret_cast<std::byte*>(const_cast<std::remove_const_t<T>*>(view.data));
    bytes.element_bytes_ = sizeof(T);
    bytes.axes_ = N;
    std::copy_n(view.shape, N, bytes.shape_);
    std::copy_n(view.stride, N, bytes.stride_);
    return bytes;
  }

  int64_t element_bytes() const { return element_bytes_; }
  int64_t Elements() const {
    int64_t elements = 1;
    for (int axis = 0; axis < axes_; ++axis) elements *= shape_[axis];
    return elements;
  }
  // Elements [first, first + count) in row-major order.
  void Pack(int64_t first, int64_t count, std::byte* dense) const {
    ForEachRun(first, count, [&](std::byte* at, int64_t run, int64_t done) {
      Copy({at, stride_[axes_ - 1] * element_bytes_},
           {dense + done * element_bytes_, element_bytes_}, run);
    });
  }
  void Unpack(int64_t first, int64_t count, const std::byte* dense) const {
    ForEachRun(first, count, [&](std::byte* at, int64_t run, int64_t done) {
      Copy({const_cast<std::byte*>(dense) + done * element_bytes_, element_bytes_},
           {at, stride_[axes_ - 1] * element_bytes_}, run);
    });
  }

 private:
  struct Run {
    std::byte* data;
    int64_t stride;  // bytes
  };
  void Copy(Run from, Run to, int64_t count) const {
    const size_t size = static_cast<size_t>(element_bytes_);
    if (from.stride == element_bytes_ && to.stride == element_bytes_) {
      std::memcpy(to.data, from.data, static_cast<size_t>(count) * size);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(to.data + i * to.stride, from.data + i * from.stride, size);
    }
  }
  // Runs along the last axis.
  template <class Fn>
  void ForEachRun(int64_t first, int64_t count, Fn fn) const {
    const int64_t inner = shape_[axes_ - 1];
    for (int64_t done = 0; done < count;) {
      const int64_t element = first + done;
      int64_t outer = element / inner;
      const int64_t start = element - outer * inner;
      int64_t offset = start * stride_[axes_ - 1];
      for (int axis = axes_ - 2; axis >= 0; --axis) {
        offset += outer % shape_[axis] * stride_[axis];
        outer /= shape_[axis];
      }
      const int64_t run = std::min(inner - start, count - done);
      fn(data_ + offset * element_bytes_, run, done);
      done += run;
    }
  }

  std::byte* data_ = nullptr;
  int64_t element_bytes_ = 1;
  int axes_ = 0;
  int64_t shape_[kMostAxes] = {};
  int64_t stride_[kMostAxes] = {};
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_STRIDED_BYTES_H_
