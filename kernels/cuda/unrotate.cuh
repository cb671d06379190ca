// Keys before their rotation, eight coordinates at a time, as UnrotateRow of base/band_rotation.h.
#ifndef KVERN_KERNELS_CUDA_UNROTATE_CUH_
#define KVERN_KERNELS_CUDA_UNROTATE_CUH_

#include <cstdint>

#include "kernels/base/band_rotation.h"
#include "kernels/cuda/row.cuh"

namespace kvern::cuda {

// A row in memory and the angles it was turned by; `bands` 0: as it lies.
struct TurnedRow {
  const std::byte* row = nullptr;
  int64_t dim_stride = 0;  // bytes
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 0;
  const float* cosine = nullptr;  // [bands]
  const float* sine = nullptr;    // [bands]
};

// Token `token` of a head row. `rotation` null: as it lies.
__device__ inline TurnedRow TurnedRowAt(const KvLayer& keys, const HeadRow& row, int32_t token,
                                        const DeviceRotation* rotation) {
  TurnedRow turned;
  turned.row = keys.Address(row.head, token);
  turned.dim_stride = keys.dim_stride;
  if (rotation == nullptr || rotation->cosine == nullptr) return turned;
  const int64_t angle = int64_t{rotation->Row(row.layer, row.head, token)} * rotation->bands;
  turned.layout = rotation->layout;
  turned.bands = rotation->bands;
  turned.cosine = rotation->cosine + angle;
  turned.sine = rotation->sine + angle;
  return turned;
}

// Eight neighbours of a table; by two vectors where `aligned` says that the first is.
__device__ inline void LoadAngles(const float* from, bool aligned, float (&angles)[kOctet]) {
  if (aligned) {
    const Vector16 bits[2] = {LoadReadOnly(from), LoadReadOnly(from + kOctet / 2)};
    memcpy(angles, bits, sizeof(angles));
    return;
  }
  KVERN_UNROLL
  for (int e = 0; e < kOctet; ++e) angles[e] = from[e];
}

// Both coordinates of a band lie in octets of their own: read the other one's too.
template <class T, RowAccess access>
__device__ inline void UnrotateHalves(const TurnedRow& turned, int32_t first, float (&x)[kOctet]) {
  const bool imaginary = first >= turned.bands;
  const int32_t band = imaginary ? first - turned.bands : first;
  float other[kOctet];
  LoadOctet<T, access>(turned.row, turned.dim_stride, imaginary ? band : band + turned.bands,
                       other);
  float cosine[kOctet];
  float sine[kOctet];
  LoadAngles(turned.cosine + band, true, cosine);
  LoadAngles(turned.sine + band, true, sine);
  KVERN_UNROLL
  for (int e = 0; e < kOctet; ++e) {
    x[e] = imaginary ? UnrotateBand({other[e], x[e]}, cosine[e], sine[e]).imag
                     : UnrotateBand({x[e], other[e]}, cosine[e], sine[e]).real;
  }
}

// Any number of bands, either layout: coordinate by coordinate.
template <class T>
__device__ inline void UnrotateOneByOne(const TurnedRow& turned, int32_t first,
                                        float (&x)[kOctet]) {
  const RotationRow dims = {turned.layout, turned.bands, turned.cosine, turned.sine};
  KVERN_UNROLL
  for (int e = 0; e < kOctet; ++e) {
    const int32_t d = first + e;
    if (d >= 2 * turned.bands) continue;
    const bool half = turned.layout == RopeLayout::kHalf;
    const int32_t band = half ? (d < turned.bands ? d : d - turned.bands) : d / 2;
    const auto at = [&](int64_t dim) {
      return ToFloat(*reinterpret_cast<const T*>(turned.row + dim * turned.dim_stride));
    };
    const Band raw = {at(dims.RealDim(band)), at(dims.ImagDim(band))};
    const Band back = UnrotateBand(raw, turned.cosine[band], turned.sine[band]);
    x[e] = d == dims.RealDim(band) ? back.real : back.imag;
  }
}

template <class T, RowAccess access>
__device__ inline void LoadUnrotatedOctet(const TurnedRow& turned, int32_t first,
                                          float (&x)[kOctet]) {
  LoadOctet<T, access>(turned.row, turned.dim_stride, first, x);
  if (first >= 2 * turned.bands) return;
  if (turned.layout == RopeLayout::kHalf && turned.bands % kOctet == 0) {
    UnrotateHalves<T, access>(turned, first, x);
  } else {
    UnrotateOneByOne<T>(turned, first, x);
  }
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_UNROTATE_CUH_
