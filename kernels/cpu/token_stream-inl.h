// Where the rows of one head lie, for kernels that compute much per row: pages are touched many at
// a time and long before, since finding one takes longest, rows are fetched a tile ahead.
#if defined(KVERN_KERNELS_CPU_TOKEN_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_TOKEN_STREAM_INL_H_
#undef KVERN_KERNELS_CPU_TOKEN_STREAM_INL_H_
#else
#define KVERN_KERNELS_CPU_TOKEN_STREAM_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/base/kv_ref.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/column_dots-inl.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

// Tokens [0, tokens) of a head, in order.
class TokenStream {
 public:
  TokenStream(const KvRef& ref, int64_t head, int64_t tokens)
      : ref_(ref), head_(head), tokens_(tokens) {}

  // Whole steps of neighbouring coordinates, which kernels may read where they lie.
  bool IsPlain() const { return ref_.HasContiguousRows() && ref_.head_dim % kLanes == 0; }

  // Goes on to the columns from `first` on: 0, then each next one. Rows up to kColumnTokens past
  // them are known then.
  HWY_INLINE void Enter(int64_t first) {
    if (!IsPlain() || first % kTileTokens != 0) return;
    if (first == 0) Find(first);
    Find(first + kTileTokens);
  }
  // Of one of the tokens there are.
  HWY_INLINE const std::byte* Row(int64_t token) const { return rows_[token % kRows]; }
  // Asks memory for a token that is soon read, if it exists.
  HWY_INLINE void Fetch(int64_t token) const {
    if (IsPlain() && token < tokens_) PrefetchRow(ref_, Row(token));
  }

 private:
  static constexpr int64_t kRows = 2 * kTileTokens;

  // The rows of a tile, one run per block, and a word from each page.
  HWY_INLINE void Find(int64_t first) {
    constexpr uintptr_t kPageBytes = 4096;
    uintptr_t page = 0;
    const int64_t end = std::min(first + kTileTokens, tokens_);
    for (int64_t token = first; token < end;) {
      const int64_t in_block = ref_.block_tokens - token % ref_.block_tokens;
      const int64_t block_end = std::min(end, token + in_block);
      const std::byte* row = ref_.Address(head_, token);
      for (; token < block_end; ++token, row += ref_.strides.token) {
        rows_[token % kRows] = row;
        const uintptr_t its_page = reinterpret_cast<uintptr_t>(row) / kPageBytes;
        if (its_page != page) hwy::Prefetch(row);
        page = its_page;
      }
    }
  }

  const KvRef& ref_;
  int64_t head_;
  int64_t tokens_;
  const std::byte* rows_[kRows];
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
