// Lazy greedy on a pre-filtered pool (retention.md 9.5, 9.6): most candidates never meet a pick.
// Those that may be next form a front and catch up with the picks in blocks (Front).
#include "kernels/cpu/diverse.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/radix_select.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/diverse.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target, the baseline last
// After the list of targets.
#include "hwy/highway.h"
#include "kernels/base/diverse_rules.h"
#include "kernels/base/order_key.h"
#include "kernels/cpu/diverse_front-inl.h"
#include "kernels/cpu/order_keys-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace {

// Calls use(i) for every byte of mask [n] that is set.
template <class Use>
HWY_INLINE void ForEachSet(const uint8_t* mask, int64_t n, const Use& use) {
  const KeyTag d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  int64_t at = 0;
  for (; at + step <= n; at += step) {
    uint8_t bytes[8] = {};
    hn::StoreMaskBits(d, LoadMask(mask + at), bytes);
    for (uint32_t bits = bytes[0] | uint32_t{bytes[1]} << 8; bits != 0; bits &= bits - 1) {
      use(at + std::countr_zero(bits));
    }
  }
  for (; at < n; ++at) {
    if (mask[at] != 0) use(at);
  }
}

class Problem {
 public:
  Problem(const HeadProblem& first, const DiverseArgs& args, std::span<const int64_t> rows)
      : first_(first), args_(args), rows_(rows), kv_heads_(args.scores.shape[1]) {}

  // Takes memory and reads scores; then `picks` may be asked for.
  absl::Status Begin(int64_t count);
  absl::Status Pick();
  void Write(KeepList* keep) const;

 private:
  void ReadCandidates();
  void FilterPool();
  void Keep(KeyVec tokens, hn::Vec<hn::Rebind<float, KeyTag>> scores, hn::Mask<KeyTag> which);

  const HeadProblem& first_;
  const DiverseArgs& args_;
  const std::span<const int64_t> rows_;
  const int64_t kv_heads_;

  int64_t forced_ = 0;
  int64_t picks_ = 0;
  // The pool, ascending by token; place = index into it. Room for a vector beyond the last.
  int64_t pool_ = 0;
  uint32_t* tokens_ = nullptr;
  float* scores_ = nullptr;
  uint32_t* keys_ = nullptr;
  int32_t* picked_ = nullptr;  // [picks_] tokens
};

absl::Status Problem::Begin(int64_t count) {
  const int64_t tokens = args_.scores.shape[2];
  ForEachSet(args_.forced.At(first_.layer, first_.head), tokens, [&](int64_t) { ++forced_; });
  picks_ = count - forced_;
  KVERN_CHECK(picks_ >= 0);
  Scratch& scratch = first_.scratch;
  scratch.Reset();
  const int64_t room = PadToLanes(tokens) + kLanes;
  tokens_ = scratch.Take<uint32_t>(room);
  scores_ = scratch.Take<float>(room);
  keys_ = scratch.Take<uint32_t>(room);
  picked_ = scratch.Take<int32_t>(picks_);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  ReadCandidates();
  KVERN_CHECK(picks_ <= pool_);
  FilterPool();
  return absl::OkStatus();
}

// Appends to the pool.
HWY_INLINE void Problem::Keep(KeyVec tokens, hn::Vec<hn::Rebind<float, KeyTag>> scores,
                              hn::Mask<KeyTag> which) {
  const KeyTag d;
  const hn::Rebind<float, KeyTag> df;
  hn::StoreU(hn::Compress(tokens, which), d, tokens_ + pool_);
  hn::StoreU(hn::Compress(scores, hn::RebindMask(df, which)), df, scores_ + pool_);
  pool_ += static_cast<int64_t>(hn::CountTrue(d, which));
}

void Problem::ReadCandidates() {
  const KeyTag d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  const int64_t tokens = args_.scores.shape[2];
  const uint8_t* candidates = args_.candidates.At(first_.layer, first_.head);
  const float* scores = args_.scores.At(first_.layer, first_.head);
  int64_t token = 0;
  for (; args_.scores.stride[2] == 1 && token + step <= tokens; token += step) {
    Keep(hn::Iota(d, static_cast<uint32_t>(token)),
         hn::LoadU(hn::Rebind<float, KeyTag>(), scores + token), LoadMask(candidates + token));
  }
  ForEachSet(candidates + token, tokens - token, [&](int64_t i) {
    tokens_[pool_] = static_cast<uint32_t>(token + i);
    scores_[pool_++] = args_.scores(first_.layer, first_.head, token + i);
  });
  // Without a penalty only the order counts, and scaling could merge neighbours.
  if (args_.scale == ScoreScale::kMinMax && args_.lambda > 0.0f) {
    ScaleToUnit({scores_, static_cast<size_t>(pool_)});
  }
}

// Drops whom nobody can pick: until all picks are made one of the best `picks_` scores is unpicked,
// and its gain is at least that score less lambda. Rounding keeps the order, so this is exact.
void Problem::FilterPool() {
  if (picks_ == 0) {
    pool_ = 0;
    return;
  }
  const KeyTag d;
  const hn::Rebind<float, KeyTag> df;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  for (int64_t i = 0; i < pool_; i += step) {
    hn::Store(OrderKeys(hn::Load(df, scores_ + i)), d, keys_ + i);
  }
  const Threshold threshold = SelectThreshold({keys_, static_cast<size_t>(pool_)}, picks_);
  if (threshold.key == kNanOrderKey) return;
  const auto cut = hn::Set(df, ScoreOfOrderKey(threshold.key) - args_.lambda);
  const int64_t all = pool_;
  pool_ = 0;
  for (int64_t i = 0; i < all; i += step) {
    const auto scores = hn::Load(df, scores_ + i);
    const auto present = hn::FirstN(d, static_cast<size_t>(std::min(all - i, step)));
    const auto kept = hn::And(present, hn::RebindMask(d, hn::Ge(scores, cut)));
    Keep(hn::Load(d, tokens_ + i), scores, kept);
  }
}

absl::Status Problem::Pick() {
  if (pool_ == picks_) {
    std::copy(tokens_, tokens_ + pool_, picked_);
    return absl::OkStatus();
  }
  Scratch& scratch = first_.scratch;
  Pool pool(scratch, {tokens_, static_cast<size_t>(pool_)}, scores_, args_);
  if (args_.lambda == 0.0f) {
    KVERN_RETURN_IF_ERROR(scratch.Taken());
    pool.Begin();
    for (int64_t i = 0; i < picks_; ++i) picked_[i] = pool.Token(pool.Pop());
    return absl::OkStatus();
  }
  Front front(first_, args_, rows_, {picked_, static_cast<size_t>(picks_)});
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  pool.Begin();
  return front.Pick(pool);
}

// The picks and the row's forced tokens, ascending, into every row of the group.
void Problem::Write(KeepList* keep) const {
  std::sort(picked_, picked_ + picks_);
  for (const int64_t row : rows_) {
    const int64_t layer = row / kv_heads_;
    const int64_t head = row % kv_heads_;
    KVERN_CHECK(keep->Count(layer, head) == forced_ + picks_);
    int32_t* out = keep->Row(layer, head);
    int32_t* end = std::copy(picked_, picked_ + picks_, out);
    ForEachSet(args_.forced.At(layer, head), args_.scores.shape[2],
               [&](int64_t token) { *end++ = static_cast<int32_t>(token); });
    std::inplace_merge(out, out + picks_, end);
  }
}

// `first` is the first of the group's rows.
absl::Status DiverseRows(const HeadProblem& first, const DiverseArgs& args,
                         std::span<const int64_t> rows, KeepList* keep) {
  KVERN_RETURN_IF_ERROR(first.runner.Check());
  Problem problem(first, args, rows);
  KVERN_RETURN_IF_ERROR(problem.Begin(keep->Count(first.layer, first.head)));
  KVERN_RETURN_IF_ERROR(problem.Pick());
  problem.Write(keep);
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace kvern::cpu {
namespace {
HWY_EXPORT(DiverseRows);
}  // namespace

absl::Status Diverse(Runner& runner, const DiverseArgs& args, KeepList* keep) {
  KVERN_CHECK(args.lambda >= 0.0f && std::isfinite(args.lambda));
  KVERN_CHECK(keep->layers == args.scores.shape[0] && keep->kv_heads == args.scores.shape[1]);
  const int64_t kv_heads = keep->kv_heads;
  const auto run = [&](std::span<const int64_t> rows, int worker) {
    const HeadProblem first = {runner, runner.ScratchOf(worker), rows[0] / kv_heads,
                               rows[0] % kv_heads};
    return HWY_DYNAMIC_DISPATCH(DiverseRows)(first, args, rows, keep);
  };
  const int64_t rows = keep->layers * kv_heads;
  if (args.groups.empty()) {
    return runner.ForEach(rows,
                          [&](int64_t row, int worker) { return run(std::span(&row, 1), worker); });
  }
  const std::vector<std::vector<int64_t>> problems = DiverseProblems(args.groups, rows);
  return runner.ForEach(std::ssize(problems),
                        [&](int64_t item, int worker) { return run(problems[item], worker); });
}

}  // namespace kvern::cpu

#endif  // HWY_ONCE
