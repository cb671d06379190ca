// Keys of one head minus a fixed key of that head. Models with a key bias have keys far from zero,
// where an f32 dot product spends its digits on what all tokens share (ruling 6).
#ifndef KVERN_KERNELS_REF_CENTRED_KEYS_H_
#define KVERN_KERNELS_REF_CENTRED_KEYS_H_

#include <cstdint>
#include <vector>

#include "kernels/ref/rows.h"

namespace kvern::ref {

class CentredKeys {
 public:
  // The reference key is the first finite one of the tokens in `mask` (null: of all), else the
  // first finite one, else zero.
  CentredKeys(const KvRef& keys, int64_t head, int64_t tokens, const uint8_t* mask)
      : keys_(keys), head_(head), tokens_(tokens), row_(keys.head_dim), centred_(keys.head_dim) {
    if (!FindReference(mask) && !FindReference(nullptr)) reference_.assign(keys.head_dim, 0.0f);
  }

  int64_t tokens() const { return tokens_; }
  int32_t head_dim() const { return keys_.head_dim; }
  // [head_dim] the reference key, in f64.
  std::vector<double> Reference() const { return {reference_.begin(), reference_.end()}; }
  const float* row() const { return row_.data(); }          // [head_dim] of the token loaded last
  const float* centred() const { return centred_.data(); }  // the same minus the reference key

  void Load(int64_t token) {
    LoadRow(keys_, head_, token, row_.data());
    for (int32_t d = 0; d < keys_.head_dim; ++d) centred_[d] = row_[d] - reference_[d];
  }
  // <vector, reference key> over the first `n` coordinates, in f64.
  double ReferenceDot(const float* vector, int64_t n) const {
    const std::vector<double> a(vector, vector + n);
    return LaneDot(a.data(), Reference().data(), n);
  }

 private:
  bool FindReference(const uint8_t* mask) {
    for (int64_t token = 0; token < tokens_; ++token) {
      if (mask != nullptr && mask[token] == 0) continue;
      LoadRow(keys_, head_, token, row_.data());
      if (!AllFinite(row_.data(), keys_.head_dim)) continue;
      reference_ = row_;
      return true;
    }
    return false;
  }

  const KvRef& keys_;
  int64_t head_;
  int64_t tokens_;
  std::vector<float> row_;
  std::vector<float> centred_;
  std::vector<float> reference_;
};

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_CENTRED_KEYS_H_
