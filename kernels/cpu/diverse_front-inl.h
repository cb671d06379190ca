// The front of lazy greedy: the few candidates that may be picked next. Each pair of a candidate
// and a pick is compared once, but many pairs at a time.
#if defined(KVERN_KERNELS_CPU_DIVERSE_FRONT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_DIVERSE_FRONT_INL_H_
#undef KVERN_KERNELS_CPU_DIVERSE_FRONT_INL_H_
#else
#define KVERN_KERNELS_CPU_DIVERSE_FRONT_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <span>

#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/diverse_rules.h"
#include "kernels/base/order_key.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/pick_cosines-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Who may be picked, ascending by token; place = index. Ranks order them, and never grow.
class Pool {
 public:
  Pool(Scratch& scratch, std::span<const uint32_t> tokens, const float* scores,
       const DiverseArgs& args)
      : tokens_(tokens),
        scores_(scores),
        lambda_(args.lambda),
        tie_(args.tie),
        redundancy_(scratch.Take<float>(Size())),
        seen_(scratch.Take<int32_t>(Size())),
        heap_(scratch.Take<uint64_t>(Size())) {}

  // Once scratch.Taken() is ok: nobody has seen a pick, and all are in the heap.
  void Begin() {
    std::fill(redundancy_, redundancy_ + Size(), 0.0f);
    std::fill(seen_, seen_ + Size(), 0);
    for (waiting_ = 0; waiting_ < Size(); ++waiting_) heap_[waiting_] = RankOf(waiting_);
    std::make_heap(heap_, heap_ + waiting_);
  }

  int64_t Size() const { return std::ssize(tokens_); }
  int32_t Token(int64_t place) const { return static_cast<int32_t>(tokens_[place]); }
  // Picks that the candidate's rank accounts for.
  int64_t Seen(int64_t place) const { return seen_[place]; }
  void See(int64_t place, int64_t picks, float redundancy) {
    seen_[place] = static_cast<int32_t>(picks);
    redundancy_[place] = std::max(redundancy_[place], redundancy);
  }
  uint64_t RankOf(int64_t place) const {
    const float gain = DiverseGain(scores_[place], lambda_, redundancy_[place]);
    const uint32_t precedence = static_cast<uint32_t>(place);
    return RankKey(gain, tie_ == TieRule::kRecent ? precedence : ~precedence);
  }

  // The heap: all that are neither picked nor in the front.
  bool IsEmpty() const { return waiting_ == 0; }
  uint64_t TopRank() const { return waiting_ == 0 ? 0 : heap_[0]; }  // every rank is above 0
  int64_t Pop() {
    std::pop_heap(heap_, heap_ + waiting_);
    return PlaceOf(heap_[--waiting_]);
  }
  void Push(int64_t place) {
    heap_[waiting_++] = RankOf(place);
    std::push_heap(heap_, heap_ + waiting_);
  }

 private:
  int64_t PlaceOf(uint64_t rank) const {
    const uint32_t precedence = static_cast<uint32_t>(rank & 0xFFFFFFFFu);
    return tie_ == TieRule::kRecent ? precedence : ~precedence;
  }

  const std::span<const uint32_t> tokens_;
  const float* const scores_;
  const float lambda_;
  const TieRule tie_;
  float* const redundancy_;
  int32_t* const seen_;
  uint64_t* const heap_;
  int64_t waiting_ = 0;
};

class Front {
 public:
  // `rows`: the group. Whoever is picked is added to `picked` [picks].
  Front(const HeadProblem& first, const DiverseArgs& args, std::span<const int64_t> rows,
        std::span<int32_t> picked)
      : first_(first),
        args_(args),
        group_rows_(rows),
        picked_(picked),
        group_(std::ssize(rows)),
        row_floats_(group_ * PaddedDim(args.values[0].head_dim)),
        cosines_(first.scratch, std::ssize(picked), group_, PaddedDim(args.values[0].head_dim)),
        values_(first.scratch.Take<float>(kSlots * row_floats_)),
        inverse_(first.scratch.Take<float>(kSlots * group_)),
        quad_inverse_(first.scratch.Take<float>(kQuad * group_)) {}

  // Once scratch.Taken() is ok. Errors: those of the check.
  absl::Status Pick(Pool& pool) {
    while (made_ < std::ssize(picked_)) {
      KVERN_RETURN_IF_ERROR(first_.runner.Check());
      Fill(pool);
      CatchUp(pool);
      TakeBest(pool);
    }
    return absl::OkStatus();
  }

 private:
  static constexpr int64_t kSlots = 64;  // rows that a core's cache holds beside a tile of picks
  static constexpr int64_t kRoom = 32;   // at least so many slots are free for those behind
  static constexpr int64_t kBatch = 32;  // are let in at least: blocks want company
  static constexpr int64_t kTilePicks = 128;

  float* Values(int64_t slot) const { return values_ + slot * row_floats_; }
  uint64_t RankOf(const Pool& pool, int64_t slot) const { return pool.RankOf(places_[slot]); }

  // Candidates from the heap into the slots behind `exact_`: all that outrank the front's best, and
  // some more.
  void Fill(Pool& pool) {
    if (exact_ > kSlots - kRoom) SendBack(pool);
    const int64_t best = Best(pool);
    const uint64_t best_rank = best < 0 ? 0 : RankOf(pool, best);
    int64_t order[kSlots];  // by picks seen, then by place
    late_ = exact_;
    while (!pool.IsEmpty() && late_ < kSlots &&
           (late_ < exact_ + kBatch || pool.TopRank() > best_rank)) {
      const int64_t place = pool.Pop();
      Prefetch(pool.Token(place), late_);
      order[late_++] = pool.Seen(place) << 32 | place;
    }
    std::sort(order + exact_, order + late_);
    for (int64_t slot = exact_; slot < late_; ++slot) {
      places_[slot] = static_cast<int32_t>(order[slot] & 0xFFFFFFFF);
      Load(pool.Token(places_[slot]), slot);
    }
  }

  // The lower half.
  void SendBack(Pool& pool) {
    uint64_t ranks[kSlots];
    for (int64_t slot = 0; slot < exact_; ++slot) ranks[slot] = RankOf(pool, slot);
    uint64_t* const middle = ranks + exact_ / 2;
    std::nth_element(ranks, middle, ranks + exact_);
    const uint64_t least = *middle;
    const int64_t all = exact_;
    exact_ = 0;
    for (int64_t slot = 0; slot < all; ++slot) {
      if (RankOf(pool, slot) < least) {
        pool.Push(places_[slot]);
      } else {
        MoveSlot(slot, exact_++);
      }
    }
  }

  // Asks for what Load reads and overwrites: picks have passed through the caches since.
  HWY_INLINE void Prefetch(int32_t token, int64_t slot) const {
    constexpr int64_t kLineFloats = 16;
    for (int64_t at = 0; at < row_floats_; at += kLineFloats) hwy::Prefetch(Values(slot) + at);
    for (const int64_t row : group_rows_) {
      const KvRef& ref = args_.values[row / args_.scores.shape[1]];
      PrefetchRow(ref, ref.Address(row % args_.scores.shape[1], token));
    }
  }

  void Load(int32_t token, int64_t slot) {
    const int64_t padded = row_floats_ / group_;
    float* value = Values(slot);
    for (int64_t i = 0; i < group_; ++i, value += padded) {
      const KvRef& ref = args_.values[group_rows_[i] / args_.scores.shape[1]];
      LoadRow(ref, ref.Address(group_rows_[i] % args_.scores.shape[1], token), value);
      inverse_[slot * group_ + i] = InverseLength(OneLaneDot(value, value, padded));
    }
  }

  void MoveSlot(int64_t from, int64_t to) {
    if (from == to) return;
    places_[to] = places_[from];
    std::copy(Values(from), Values(from) + row_floats_, Values(to));
    std::copy(inverse_ + from * group_, inverse_ + (from + 1) * group_, inverse_ + to * group_);
  }

  // Those behind see all picks, or go back as soon as somebody outside outranks them.
  void CatchUp(Pool& pool) {
    const uint64_t outside = pool.TopRank();
    int64_t slots[kSlots];  // at work, ascending
    int64_t count = 0;
    int64_t next = exact_;
    const auto seen = [&](int64_t slot) { return pool.Seen(places_[slot]); };
    const int64_t from = next < late_ ? seen(next) / kTilePicks * kTilePicks : made_;
    for (int64_t begin = from; begin < made_; begin += kTilePicks) {
      const int64_t end = std::min(begin + kTilePicks, made_);
      while (next < late_ && seen(next) < end) slots[count++] = next++;
      for (int64_t i = 0; i < count; i += kQuad) {
        const int64_t quad = std::min(count - i, kQuad);
        See(pool, {slots + i, static_cast<size_t>(quad)}, std::max(begin, seen(slots[i])), end);
      }
      int64_t left = 0;
      for (int64_t i = 0; i < count; ++i) {
        if (RankOf(pool, slots[i]) < outside) {
          pool.Push(places_[slots[i]]);
        } else {
          slots[left++] = slots[i];
        }
      }
      count = left;
    }
    while (next < late_) slots[count++] = next++;
    for (int64_t i = 0; i < count; ++i) MoveSlot(slots[i], exact_++);
  }

  // Up to four slots see the picks [begin, end); the first of them has seen the fewest.
  void See(Pool& pool, std::span<const int64_t> slots, int64_t begin, int64_t end) {
    constexpr int64_t kBlock = PickCosines::kBlock;
    const float* rows[kQuad];
    for (int64_t r = 0; r < kQuad; ++r) {
      const int64_t slot = slots[std::min<int64_t>(r, std::ssize(slots) - 1)];
      rows[r] = Values(slot);
      for (int64_t i = 0; i < group_; ++i) {
        quad_inverse_[i * kQuad + r] = inverse_[slot * group_ + i];
      }
    }
    float most[kQuad];
    cosines_.Largest(rows, quad_inverse_, begin / kBlock * kBlock, end, most);
    for (int64_t r = 0; r < std::ssize(slots); ++r) pool.See(places_[slots[r]], end, most[r]);
  }

  // Slot of the largest rank among those that have seen all picks; -1: there is none.
  int64_t Best(const Pool& pool) const {
    int64_t best = -1;
    uint64_t best_rank = 0;
    for (int64_t slot = 0; slot < exact_; ++slot) {
      const uint64_t rank = RankOf(pool, slot);
      if (best >= 0 && rank < best_rank) continue;
      best = slot;
      best_rank = rank;
    }
    return best;
  }

  // Picks while the best of the front outranks everybody outside.
  void TakeBest(Pool& pool) {
    while (made_ < std::ssize(picked_)) {
      const int64_t best = Best(pool);
      if (best < 0 || RankOf(pool, best) < pool.TopRank()) return;
      picked_[made_++] = pool.Token(places_[best]);
      cosines_.Add({Values(best), inverse_ + best * group_});
      MoveSlot(--exact_, best);
      int64_t slots[kQuad];
      for (int64_t first = 0; first < exact_; first += kQuad) {
        const int64_t count = std::min(exact_ - first, kQuad);
        for (int64_t r = 0; r < count; ++r) slots[r] = first + r;
        See(pool, {slots, static_cast<size_t>(count)}, made_ - 1, made_);
      }
    }
  }

  const HeadProblem& first_;
  const DiverseArgs& args_;
  const std::span<const int64_t> group_rows_;
  const std::span<int32_t> picked_;
  const int64_t group_;
  const int64_t row_floats_;  // of all rows of the group, padded
  int64_t made_ = 0;
  PickCosines cosines_;
  // Slots [0, exact_) have seen all picks, [exact_, late_) are behind.
  int64_t exact_ = 0;
  int64_t late_ = 0;
  int32_t places_[kSlots];
  float* const values_;        // [kSlots, group, padded]
  float* const inverse_;       // [kSlots, group]
  float* const quad_inverse_;  // [group, 4]
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
