// Rows of several heads, 16 tokens of one head at a time, read where they lie: a kernel that widens
// elements on the way into registers needs no copy of them.
#if defined(KVERN_KERNELS_CPU_ROW_CHUNKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_ROW_CHUNKS_INL_H_
#undef KVERN_KERNELS_CPU_ROW_CHUNKS_INL_H_
#else
#define KVERN_KERNELS_CPU_ROW_CHUNKS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where 16 tokens of one head lie. Rows past `count` are the last one again.
struct ChunkPlace {
  int64_t head;
  int64_t first;
  int64_t count;
  bool ends_turn;  // the head's turn is over
  const std::byte* row[kChunkTokens];
};

// Elements [0, head_dim) of a row may be read.
template <class T>
struct RowChunk {
  const ChunkPlace& place;
  const ChunkPlace* ahead;  // read soon; null: nothing is
  int64_t row_bytes;

  int64_t head() const { return place.head; }
  int64_t first() const { return place.first; }
  int64_t count() const { return place.count; }
  bool EndsTurn() const { return place.ends_turn; }
  HWY_INLINE const T* Row(int64_t r) const { return reinterpret_cast<const T*>(place.row[r]); }

  // Asks memory for a row that comes soon; called for every r, so that requests spread over work.
  HWY_INLINE void Prefetch(int64_t r) const {
    constexpr int64_t kLineBytes = 64;
    if (ahead == nullptr) return;
    for (int64_t at = 0; at < row_bytes; at += kLineBytes) hwy::Prefetch(ahead->row[r] + at);
  }
};

enum class ChunkRead : uint8_t {
  kInPlace,  // rows as they lie, where coordinates are neighbours
  kWidened   // always a copy in f32
};
// A kernel that reads whole steps of 16 reads in place what consists of them.
inline ChunkRead ReadInSteps(int64_t n) {
  return n % kLanes == 0 ? ChunkRead::kInPlace : ChunkRead::kWidened;
}

// Visits chunks in the order of memory: `turn_tokens` tokens of each head in turn. Rows whose
// coordinates are no neighbours are copied to f32; copies are aligned and readable up to a step of
// 16 past the padded head_dim.
class RowChunks {
 public:
  RowChunks(const HeadRun& run, const KvRef& ref, ChunkRead read)
      : run_(run),
        ref_(ref),
        copies_(read == ChunkRead::kWidened || !ref.HasContiguousRows()),
        copy_(TakeTile<float>(run.scratch, copies_ ? kChunkTokens : 0, ref.head_dim + kLanes)) {}

  // visit(RowChunk<T>), after scratch.Taken() is ok, for the tokens of each head below `tokens`.
  // Errors: those of the check at each tile.
  template <class Visit>
  HWY_INLINE absl::Status ForEach(int64_t tokens, int64_t turn_tokens, const Visit& visit) {
    tokens_ = tokens;
    turn_tokens_ = turn_tokens;
    turn_ = at_ = 0;
    head_ = run_.first;
    if (copies_) return ForEachCopy(visit);
    absl::Status status;
    VisitDType(ref_.dtype, [&](auto tag) HWY_ATTR {
      status = ForEachInPlace<typename decltype(tag)::type>(visit);
    });
    return status;
  }

 private:
  // In chunks of work: about what memory takes to answer, and to find a page as well.
  static constexpr int64_t kLinesAhead = 2;
  static constexpr int64_t kPagesAhead = 8;
  static constexpr int64_t kPlaces = kPagesAhead + 1;

  template <class Visit>
  HWY_INLINE absl::Status ForEachCopy(const Visit& visit) {
    std::fill(copy_.data, copy_.data + copy_.Size(), 0.0f);
    ChunkPlace place;
    while (Next(&place)) {
      KVERN_RETURN_IF_ERROR(CheckAtTile(run_.runner, place.first));
      LoadRows(ref_, place.head, place.first, FirstRows(copy_, place.count));
      for (int64_t r = 0; r < kChunkTokens; ++r) {
        place.row[r] = reinterpret_cast<std::byte*>(copy_.At(std::min(r, place.count - 1)));
      }
      visit(RowChunk<float>{place, nullptr, 0});
    }
    return absl::OkStatus();
  }

  template <class T, class Visit>
  HWY_INLINE absl::Status ForEachInPlace(const Visit& visit) {
    const int64_t row_bytes = ref_.head_dim * SizeOf(ref_.dtype);
    ChunkPlace places[kPlaces];
    int64_t found = 0;
    for (int64_t done = 0;; ++done) {
      for (; found <= done + kPagesAhead && Next(&places[found % kPlaces]); ++found) {
        Find(&places[found % kPlaces]);
      }
      if (done == found) return absl::OkStatus();
      const ChunkPlace& place = places[done % kPlaces];
      KVERN_RETURN_IF_ERROR(CheckAtTile(run_.runner, place.first));
      const int64_t soon = done + kLinesAhead;
      visit(RowChunk<T>{place, soon < found ? &places[soon % kPlaces] : nullptr, row_bytes});
    }
  }

  // Head and tokens of the next chunk; false at the end.
  bool Next(ChunkPlace* place) {
    while (turn_ < tokens_) {
      const int64_t end = std::min(TokensOf(ref_, head_, tokens_), turn_ + turn_tokens_);
      if (turn_ + at_ < end) {
        place->head = head_;
        place->first = turn_ + at_;
        place->count = std::min(kChunkTokens, end - place->first);
        place->ends_turn = place->first + place->count == end;
        at_ += kChunkTokens;
        return true;
      }
      at_ = 0;
      if (++head_ < run_.first + run_.count) continue;
      head_ = run_.first;
      turn_ += turn_tokens_;
    }
    return false;
  }

  // Rows of the place, one run per block; each page is touched, since finding it takes longest.
  HWY_INLINE void Find(ChunkPlace* place) const {
    constexpr uintptr_t kPageBytes = 4096;
    uintptr_t page = 0;
    for (int64_t done = 0; done < place->count;) {
      const int64_t token = place->first + done;
      const int64_t in_block = ref_.block_tokens - token % ref_.block_tokens;
      const int64_t end = std::min(place->count, done + in_block);
      const std::byte* row = ref_.Address(place->head, token);
      for (; done < end; ++done, row += ref_.strides.token) {
        place->row[done] = row;
        const uintptr_t its_page = reinterpret_cast<uintptr_t>(row) / kPageBytes;
        if (its_page != page) hwy::Prefetch(row);
        page = its_page;
      }
    }
    std::fill(place->row + place->count, place->row + kChunkTokens, place->row[place->count - 1]);
  }

  const HeadRun& run_;
  const KvRef& ref_;
  const bool copies_;
  const TensorView<float, 2> copy_;
  int64_t tokens_ = 0;
  int64_t turn_tokens_ = 0;
  // What Next gives: token turn_ + at_ of head_.
  int64_t turn_ = 0;
  int64_t at_ = 0;
  int64_t head_ = 0;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
