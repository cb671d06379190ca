// The key of a head that dot products are taken relative to (ruling 6): models with a key bias have
// keys far from zero, where f32 spends its digits on what all tokens share.
#if defined(KVERN_KERNELS_CPU_REFERENCE_KEY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REFERENCE_KEY_INL_H_
#undef KVERN_KERNELS_CPU_REFERENCE_KEY_INL_H_
#else
#define KVERN_KERNELS_CPU_REFERENCE_KEY_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

class ReferenceKey {
 public:
  // `row` [1, padded head_dim] is its memory.
  ReferenceKey(const KvRef& keys, int64_t head, TensorView<float, 2> row)
      : keys_(&keys), head_(head), row_(row) {}

  // The first finite key of the tokens in `mask`, else the first finite
  // one of [0, tokens), else zero.
  void Find(const uint8_t* mask, int64_t tokens) {
    if (Search(mask, tokens) || Search(nullptr, tokens)) return;
    std::fill(row_.data, row_.data + row_.Size(), 0.0f);
  }
  const float* data() const { return row_.data; }  // [padded head_dim], aligned

  // <vector, reference key> over the first `n` coordinates, in f64. `vector` is aligned and padded.
  double Dot(const float* vector, int64_t n) const {
    return LaneDotAs<double>(vector, row_.data, n);
  }

 private:
  bool Search(const uint8_t* mask, int64_t tokens) {
    std::fill(row_.data, row_.data + row_.Size(), 0.0f);
    for (int64_t token = 0; token < tokens; ++token) {
      if (mask != nullptr && mask[token] == 0) continue;
      LoadRows(*keys_, head_, token, row_);
      if (AllFinite(row_.data, keys_->head_dim)) return true;
    }
    return false;
  }

  const KvRef* keys_;
  int64_t head_;
  TensorView<float, 2> row_;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
