// Columns of the keys of one head minus a fixed key of that head, a tile at a time. Models with a
// key bias have keys far from zero, where an f32 dot product spends its digits on what all tokens
// share.
#if defined(KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_
#undef KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_
#else
#define KVERN_KERNELS_CPU_CENTRED_KEYS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/column_dots-inl.h"
#include "kernels/cpu/columns-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class CentredKeys {
 public:
  CentredKeys(const HeadProblem& problem, const KvRef& keys, int64_t tokens)
      : keys_(keys),
        head_(problem.head),
        tokens_(tokens),
        stream_(keys, problem.head, tokens),
        rows_(TakeTile<float>(problem.scratch, kColumnTokens, keys.head_dim)),
        columns_(problem.scratch.Take<float>(rows_.Size())),
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
  // [head_dim, kColumnTokens] of the last Load.
  const float* columns() const { return columns_; }

  // The columns from token `first` on, which exists: 0, then each next ones. Those past the end are
  // the last token again.
  HWY_INLINE void Load(int64_t first) {
    const int64_t count = std::min(kColumnTokens, tokens_ - first);
    stream_.Enter(first);
    const bool in_place = stream_.IsPlain();
    ColumnSource from;
    from.n = rows_.stride[0];
    from.reference = reference_;
    if (!in_place) LoadRows(keys_, head_, first, FirstRows(rows_, count));
    for (int64_t r = 0; r < kColumnTokens; ++r) {
      const int64_t row = std::min(r, count - 1);
      from.rows[r] =
          in_place ? stream_.Row(first + row) : reinterpret_cast<const std::byte*>(rows_.At(row));
    }
    VisitDType(in_place ? keys_.dtype : DType::kF32, [&](auto tag) HWY_ATTR {
      FillColumns<typename decltype(tag)::type>(from, columns_);
    });
  }
  // Asks memory for the key of a token of the next columns.
  HWY_INLINE void Fetch(int64_t token) const { stream_.Fetch(token); }

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
  TokenStream stream_;
  TensorView<float, 2> rows_;  // where keys do not lie as columns need them
  float* columns_;
  float* reference_;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
