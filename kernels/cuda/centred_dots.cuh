// f32 dot products of centred keys with several vectors at once: two threads share a key, walk over
// it once for four vectors, and end with the sums of two each. As ref/centred_keys.h.
#ifndef KVERN_KERNELS_CUDA_CENTRED_DOTS_CUH_
#define KVERN_KERNELS_CUDA_CENTRED_DOTS_CUH_

#include <cstdint>

#include "kernels/cuda/row.cuh"

namespace kvern::cuda {

inline constexpr int kHeads = 4;  // vectors (of as many query heads) in one walk
inline constexpr int kOwnHeads =
    kHeads / 2;  // of them, whose sums this thread of the pair ends with

// A row's octets of this thread: o is that of dims 16 o + 8 (odd thread). With kOctets > 0 they
// wait in registers, packed as they lie, so that memory is read once.
template <class T, RowAccess access, int kOctets>
class KeyOctets {
 public:
  __device__ KeyOctets(const std::byte* row, int64_t dim_stride)
      : row_(row), dim_stride_(dim_stride) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets; ++o) bits_[o] = LoadReadOnly(row + FirstDim(o) * sizeof(T));
  }
  __device__ static int32_t FirstDim(int o) {
    return o * kStep + static_cast<int32_t>(threadIdx.x % 2) * kOctet;
  }
  __device__ __forceinline__ void Get(int o, float (&x)[kOctet]) const {
    T values[kOctet];
    memcpy(values, &bits_[o], sizeof(values));
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[e] = ToFloat(values[e]);
  }

 private:
  const std::byte* row_;
  int64_t dim_stride_;
  Vector16 bits_[kOctets];
};

template <class T, RowAccess access>
class KeyOctets<T, access, 0> {
 public:
  __device__ KeyOctets(const std::byte* row, int64_t dim_stride)
      : row_(row), dim_stride_(dim_stride) {}
  __device__ static int32_t FirstDim(int o) {
    return o * kStep + static_cast<int32_t>(threadIdx.x % 2) * kOctet;
  }
  __device__ __forceinline__ void Get(int o, float (&x)[kOctet]) const {
    LoadOctet<T, access>(row_, dim_stride_, FirstDim(o), x);
  }
  __device__ float At(int32_t d) const {
    return ToFloat(*reinterpret_cast<const T*>(row_ + d * dim_stride_));
  }

 private:
  const std::byte* row_;
  int64_t dim_stride_;
};

// Vectors of up to kHeads query heads; a missing one repeats the last, its result is dropped.
struct HeadVectors {
  const float* first;
  int64_t stride;
  int32_t heads;
  __device__ const float* Of(int head) const { return first + min(head, heads - 1) * stride; }
};

// Eight neighbours from an address that is a multiple of 32 bytes.
__device__ inline void LoadFloats(const float* from, float (&values)[kOctet]) {
  const Vector16 bits[2] = {Load(from), Load(from + kOctet / 2)};
  memcpy(values, bits, sizeof(values));
}

// The trees of kHeads sums whose lanes the pair shares. The even thread ends with heads 0, 2, the
// odd one with 1, 3: each sends the lanes that the other sums up.
__device__ inline void OwnHeadSums(const float (&lanes)[kHeads][kOctet], float (&own)[kOwnHeads]) {
  const bool odd = threadIdx.x % 2 != 0;
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    float sum[kOctet];
    KVERN_UNROLL
    for (int i = 0; i < kOctet; ++i) {
      const float mine = odd ? lanes[2 * j + 1][i] : lanes[2 * j][i];
      const float other = odd ? lanes[2 * j][i] : lanes[2 * j + 1][i];
      sum[i] = mine + __shfl_xor_sync(kAllLanes, other, 1);
    }
    KVERN_UNROLL
    for (int half = kOctet / 2; half > 0; half /= 2) {
      KVERN_UNROLL
      for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
    }
    own[j] = sum[0];
  }
}

// <vector, key - reference> per head, by the f32 lanes of ruling 6 over the first `dims`.
template <int kOctets, class Key>
__device__ inline void CentredDots(const Key& key, const float* reference,
                                   const HeadVectors& vectors, int32_t dims,
                                   float (&dots)[kOwnHeads]) {
  float lanes[kHeads][kOctet] = {};
  const auto step = [&](int o) {
    const int32_t first = Key::FirstDim(o);
    float x[kOctet];
    key.Get(o, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[e] -= reference[first + e];
    KVERN_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const float* vector = vectors.Of(h) + first;
      if constexpr (kOctets > 0) {
        float u[kOctet];
        LoadFloats(vector, u);
        KVERN_UNROLL
        for (int e = 0; e < kOctet; ++e) lanes[h][e] = fmaf(x[e], u[e], lanes[h][e]);
      } else {
        for (int e = 0; e < kOctet && first + e < dims; ++e) {
          lanes[h][e] = fmaf(x[e], vector[e], lanes[h][e]);
        }
      }
    }
  };
  if constexpr (kOctets > 0) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets; ++o) step(o);
  } else {
    for (int o = 0; Key::FirstDim(o) < dims; ++o) step(o);
  }
  OwnHeadSums(lanes, dots);
}

// The head of the chunk whose sum j this thread has.
__device__ inline int32_t OwnHead(int j) { return 2 * j + static_cast<int32_t>(threadIdx.x % 2); }

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CENTRED_DOTS_CUH_
