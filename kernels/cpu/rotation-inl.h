// RotateRow and UnrotateRow of kernels/base/band_rotation.h, a vector of bands at a time.
#if defined(KVERN_KERNELS_CPU_ROTATION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_ROTATION_INL_H_
#undef KVERN_KERNELS_CPU_ROTATION_INL_H_
#else
#define KVERN_KERNELS_CPU_ROTATION_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/band_rotation.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

enum class Turn : uint8_t { kRotate, kUnrotate };

// Turns `real` and `imag` by the bands that start at `band`.
template <Turn kTurn, class D>
HWY_INLINE void TurnBands(D d, const RotationRow& row, int64_t band, hn::Vec<D>* real,
                          hn::Vec<D>* imag) {
  const auto cosine = hn::LoadU(d, row.cosine + band);
  const auto sine = hn::LoadU(d, row.sine + band);
  const auto re = *real;
  const auto im = *imag;
  if constexpr (kTurn == Turn::kRotate) {
    *real = hn::MulSub(re, cosine, hn::Mul(im, sine));
    *imag = hn::MulAdd(re, sine, hn::Mul(im, cosine));
  } else {
    *real = hn::MulAdd(re, cosine, hn::Mul(im, sine));
    *imag = hn::MulSub(im, cosine, hn::Mul(re, sine));
  }
}

// x [head_dim] in place.
template <Turn kTurn>
HWY_INLINE void TurnRow(const RotationRow& row, float* HWY_RESTRICT x) {
  const hn::CappedTag<float, 16> d;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  int64_t band = 0;
  for (; band + step <= row.bands; band += step) {
    hn::Vec<decltype(d)> real;
    hn::Vec<decltype(d)> imag;
    if (row.layout == RopeLayout::kHalf) {
      real = hn::LoadU(d, x + band);
      imag = hn::LoadU(d, x + band + row.bands);
      TurnBands<kTurn>(d, row, band, &real, &imag);
      hn::StoreU(real, d, x + band);
      hn::StoreU(imag, d, x + band + row.bands);
    } else {
      hn::LoadInterleaved2(d, x + 2 * band, real, imag);
      TurnBands<kTurn>(d, row, band, &real, &imag);
      hn::StoreInterleaved2(real, imag, d, x + 2 * band);
    }
  }
  for (; band < row.bands; ++band) {
    float* real = x + row.RealDim(band);
    float* imag = x + row.ImagDim(band);
    const Band turned = kTurn == Turn::kRotate
                            ? RotateBand({*real, *imag}, row.cosine[band], row.sine[band])
                            : UnrotateBand({*real, *imag}, row.cosine[band], row.sine[band]);
    *real = turned.real;
    *imag = turned.imag;
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_ROTATION_INL_H_
