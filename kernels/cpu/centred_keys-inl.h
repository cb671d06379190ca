// Keys of one head minus a fixed key of that head, a chunk at a time. Models with a key bias have
// keys far from zero, where an f32 dot product spends its digits on what all tokens share.
#if defined(KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_
#undef KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_
#else
#define KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/row_stream-inl.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class CentredKeys {
 public:
  CentredKeys(const HeadProblem& problem, const KvRef& keys, int64_t tokens)
      : keys_(keys),
        head_(problem.head),
        tokens_(tokens),
        rows_(TakeTile<float>(problem.scratch, kChunkTokens, keys.head_dim)),
        centred_(TakeTile<float>(problem.scratch, kChunkTokens, keys.head_dim)),
        reference_(problem.scratch.Take<float>(PadToLanes(keys.head_dim))) {}

  // Once scratch.Taken() is ok. The reference key is the first finite one of the tokens in `mask`
  // (null: of all), else the first finite one, else zero.
  void FindReference(const uint8_t* mask) {
    std::fill(rows_.data, rows_.data + rows_.Size(), 0.0f);
    std::fill(reference_, reference_ + rows_.stride[0], 0.0f);
    if (!Search(mask)) Search(nullptr);
  }

  int64_t tokens() const { return tokens_; }
  int64_t head_dim() const { return keys_.head_dim; }
  // [padded head_dim]
  const float* reference() const { return reference_; }
  // [count, padded head_dim] of the last Load.
  TensorView<float, 2> rows() const { return FirstRows(rows_, count_); }
  TensorView<float, 2> centred() const { return FirstRows(centred_, count_); }

  HWY_INLINE void Load(int64_t first, int64_t count) {
    count_ = count;
    LoadRows(keys_, head_, first, FirstRows(rows_, count));
    const LaneTag<float> d;
    const int64_t padded = rows_.stride[0];
    for (int64_t r = 0; r < count; ++r) {
      for (int64_t i = 0; i < padded; i += static_cast<int64_t>(hn::MaxLanes(d))) {
        const auto x = hn::Load(d, rows_.At(r) + i);
        hn::Store(hn::Sub(x, hn::Load(d, reference_ + i)), d, centred_.At(r) + i);
      }
    }
  }

  // As Load, but for rows(), which stay as they were. Whoever computes between two calls fetches
  // the next chunk, step by step.
  HWY_INLINE void LoadCentred(int64_t first, int64_t count) {
    const RowStream stream = {keys_, head_};
    if (!stream.IsPlain()) return Load(first, count);
    count_ = count;
    stream.Read(first, reference_, centred());
  }
  HWY_INLINE void Fetch(int64_t first, int64_t step, int64_t steps) const {
    RowStream{keys_, head_}.Fetch(first, step, steps);
  }

  // <vector, reference key> over the first `n` coordinates, in f64. `vector` is aligned and padded.
  double ReferenceDot(const float* vector, int64_t n) const {
    return LaneDotAs<double>(vector, reference_, n);
  }

 private:
  bool Search(const uint8_t* mask) {
    for (int64_t token = 0; token < tokens_; ++token) {
      if (mask != nullptr && mask[token] == 0) continue;
      LoadRows(keys_, head_, token, FirstRows(rows_, 1));
      if (!AllFinite(rows_.data, keys_.head_dim)) continue;
      std::copy(rows_.data, rows_.data + keys_.head_dim, reference_);
      return true;
    }
    return false;
  }

  const KvRef& keys_;
  int64_t head_;
  int64_t tokens_;
  TensorView<float, 2> rows_;
  TensorView<float, 2> centred_;
  float* reference_;
  int64_t count_ = 0;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
