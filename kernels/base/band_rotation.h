// Turning a row by its rotary angles and back, in the one formula of every backend.
#ifndef KVERN_KERNELS_BASE_BAND_ROTATION_H_
#define KVERN_KERNELS_BASE_BAND_ROTATION_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/base/host_device.h"
#include "kernels/base/rotation.h"

namespace kvern {

struct Band {
  float real;
  float imag;
};

KVERN_HD inline Band RotateBand(Band band, float cosine, float sine) {
  return {std::fma(band.real, cosine, -(band.imag * sine)),
          std::fma(band.real, sine, band.imag * cosine)};
}
KVERN_HD inline Band UnrotateBand(Band band, float cosine, float sine) {
  return {std::fma(band.real, cosine, band.imag * sine),
          std::fma(band.imag, cosine, -(band.real * sine))};
}

// cos and sin of one row of a table, [bands] each.
struct RotationRow {
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 0;
  const float* cosine = nullptr;
  const float* sine = nullptr;

  KVERN_HD int64_t RealDim(int64_t band) const {
    return layout == RopeLayout::kHalf ? band : 2 * band;
  }
  KVERN_HD int64_t ImagDim(int64_t band) const {
    return layout == RopeLayout::kHalf ? band + bands : 2 * band + 1;
  }
};

inline RotationRow RowOf(const RotationTable& table, int64_t row) {
  return {table.layout, table.bands, table.cosine.data() + row * table.bands,
          table.sine.data() + row * table.bands};
}

// Both angles are the same to the bit: turning from one to the other is then the identity.
inline bool SameAngles(const RotationRow& a, const RotationRow& b) {
  const size_t bytes = static_cast<size_t>(a.bands) * sizeof(float);
  return std::memcmp(a.cosine, b.cosine, bytes) == 0 && std::memcmp(a.sine, b.sine, bytes) == 0;
}

// x [head_dim] in place; coordinates beyond the bands stay.
KVERN_HD inline void RotateRow(const RotationRow& row, float* x) {
  for (int64_t f = 0; f < row.bands; ++f) {
    float* real = x + row.RealDim(f);
    float* imag = x + row.ImagDim(f);
    const Band turned = RotateBand({*real, *imag}, row.cosine[f], row.sine[f]);
    *real = turned.real;
    *imag = turned.imag;
  }
}
KVERN_HD inline void UnrotateRow(const RotationRow& row, float* x) {
  for (int64_t f = 0; f < row.bands; ++f) {
    float* real = x + row.RealDim(f);
    float* imag = x + row.ImagDim(f);
    const Band turned = UnrotateBand({*real, *imag}, row.cosine[f], row.sine[f]);
    *real = turned.real;
    *imag = turned.imag;
  }
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_BAND_ROTATION_H_
