// Lazy greedy on a pre-filtered pool (retention.md 9.5, 9.6): most candidates never meet a pick.
#include "kernels/cpu/diverse.h"

#include <algorithm>
#include <cmath>
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
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace {

class Problem {
 public:
  Problem(const Runner& runner, const DiverseArgs& args, std::span<const int64_t> rows)
      : runner_(runner),
        args_(args),
        rows_(rows),
        kv_heads_(args.scores.shape[1]),
        padded_(args.values.empty() ? 0 : PaddedDim(args.values[0].head_dim)) {}

  // Takes memory and reads scores; then `picks` may be asked for.
  absl::Status Begin(int64_t count, Scratch& scratch);
  absl::Status Pick();
  void Write(KeepList* keep) const;

 private:
  // Values of one candidate in every row of the group, and their inverse lengths.
  struct Vectors {
    float* values;   // [rows, padded_]
    float* inverse;  // [rows]
  };

  uint64_t Rank(int64_t place, float gain) const {
    const uint32_t precedence = static_cast<uint32_t>(place);
    return RankKey(gain, args_.tie == TieRule::kRecent ? precedence : ~precedence);
  }
  int64_t PlaceOf(uint64_t rank) const {
    const uint32_t precedence = static_cast<uint32_t>(rank & 0xFFFFFFFFu);
    return args_.tie == TieRule::kRecent ? precedence : ~precedence;
  }
  Vectors ChosenVectors(int64_t pick) const {
    const int64_t first = pick * std::ssize(rows_);
    return {chosen_.values + first * padded_, chosen_.inverse + first};
  }

  void ReadCandidates();
  void FilterPool();
  void Load(int32_t token, const Vectors& vectors) const;
  void Refresh(int64_t place);

  const Runner& runner_;
  const DiverseArgs& args_;
  const std::span<const int64_t> rows_;
  const int64_t kv_heads_;
  const int64_t padded_;

  int64_t forced_ = 0;
  int64_t picks_ = 0;
  int64_t made_ = 0;
  // The pool, ascending by token; place = index into it.
  int64_t pool_ = 0;
  int32_t* tokens_ = nullptr;
  float* scores_ = nullptr;
  float* redundancy_ = nullptr;
  int32_t* seen_ = nullptr;    // picks that `redundancy_` accounts for
  uint64_t* ranks_ = nullptr;  // a heap; stale ranks are upper bounds
  uint32_t* keys_ = nullptr;
  int32_t* picked_ = nullptr;  // [picks_] tokens
  Vectors chosen_ = {};
  Vectors candidate_ = {};
};

absl::Status Problem::Begin(int64_t count, Scratch& scratch) {
  const int64_t tokens = args_.scores.shape[2];
  const int64_t layer = rows_[0] / kv_heads_;
  const int64_t head = rows_[0] % kv_heads_;
  for (int64_t token = 0; token < tokens; ++token) {
    forced_ += args_.forced(layer, head, token) != 0 ? 1 : 0;
  }
  picks_ = count - forced_;
  KVERN_CHECK(picks_ >= 0);
  const int64_t group = std::ssize(rows_);
  scratch.Reset();
  tokens_ = scratch.Take<int32_t>(tokens);
  scores_ = scratch.Take<float>(tokens);
  redundancy_ = scratch.Take<float>(tokens);
  seen_ = scratch.Take<int32_t>(tokens);
  ranks_ = scratch.Take<uint64_t>(tokens);
  keys_ = scratch.Take<uint32_t>(tokens);
  picked_ = scratch.Take<int32_t>(picks_);
  const int64_t chosen = args_.lambda > 0.0f ? picks_ * group : 0;
  chosen_ = {scratch.Take<float>(chosen * padded_), scratch.Take<float>(chosen)};
  candidate_ = {scratch.Take<float>(group * padded_), scratch.Take<float>(group)};
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  ReadCandidates();
  KVERN_CHECK(picks_ <= pool_);
  FilterPool();
  return absl::OkStatus();
}

void Problem::ReadCandidates() {
  const int64_t layer = rows_[0] / kv_heads_;
  const int64_t head = rows_[0] % kv_heads_;
  for (int64_t token = 0; token < args_.scores.shape[2]; ++token) {
    if (args_.candidates(layer, head, token) == 0) continue;
    tokens_[pool_] = static_cast<int32_t>(token);
    scores_[pool_++] = args_.scores(layer, head, token);
  }
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
  for (int64_t i = 0; i < pool_; ++i) keys_[i] = OrderKey(scores_[i]);
  const Threshold threshold = SelectThreshold({keys_, static_cast<size_t>(pool_)}, picks_);
  if (threshold.key == kNanOrderKey) return;
  const float cut = ScoreOfOrderKey(threshold.key) - args_.lambda;
  int64_t kept = 0;
  for (int64_t i = 0; i < pool_; ++i) {
    if (!(scores_[i] >= cut)) continue;
    tokens_[kept] = tokens_[i];
    scores_[kept++] = scores_[i];
  }
  pool_ = kept;
}

void Problem::Load(int32_t token, const Vectors& vectors) const {
  for (int64_t i = 0; i < std::ssize(rows_); ++i) {
    const KvRef& ref = args_.values[rows_[i] / kv_heads_];
    float* value = vectors.values + i * padded_;
    LoadRow(ref, ref.Address(rows_[i] % kv_heads_, token), value);
    vectors.inverse[i] = InverseLength(OneLaneDot(value, value, padded_));
  }
}

// Takes the picks since the last look into the candidate's redundancy.
void Problem::Refresh(int64_t place) {
  Load(tokens_[place], candidate_);
  for (int64_t pick = seen_[place]; pick < made_; ++pick) {
    const Vectors chosen = ChosenVectors(pick);
    double sum = 0.0;
    for (int64_t i = 0; i < std::ssize(rows_); ++i) {
      const int64_t at = i * padded_;
      const float dot = OneLaneDot(candidate_.values + at, chosen.values + at, padded_);
      sum += RowCosine(dot, candidate_.inverse[i], chosen.inverse[i]);
    }
    redundancy_[place] = std::max(redundancy_[place], Redundancy(sum, std::ssize(rows_)));
  }
  seen_[place] = static_cast<int32_t>(made_);
}

absl::Status Problem::Pick() {
  if (pool_ == picks_) {
    std::copy(tokens_, tokens_ + pool_, picked_);
    return absl::OkStatus();
  }
  for (int64_t place = 0; place < pool_; ++place) {
    redundancy_[place] = 0.0f;
    seen_[place] = 0;
    ranks_[place] = Rank(place, DiverseGain(scores_[place], args_.lambda, 0.0f));
  }
  std::make_heap(ranks_, ranks_ + pool_);
  int64_t heap = pool_;
  int64_t looks = 0;
  while (made_ < picks_) {
    if (looks++ % kTileTokens == 0) KVERN_RETURN_IF_ERROR(runner_.Check());
    std::pop_heap(ranks_, ranks_ + heap);
    const int64_t place = PlaceOf(ranks_[heap - 1]);
    if (args_.lambda > 0.0f && seen_[place] < made_) {
      Refresh(place);
      const float gain = DiverseGain(scores_[place], args_.lambda, redundancy_[place]);
      ranks_[heap - 1] = Rank(place, gain);
      if (heap > 1 && ranks_[heap - 1] < ranks_[0]) {
        std::push_heap(ranks_, ranks_ + heap);
        continue;
      }
    }
    --heap;
    if (args_.lambda > 0.0f) Load(tokens_[place], ChosenVectors(made_));
    picked_[made_++] = tokens_[place];
  }
  return absl::OkStatus();
}

// The picks and the row's forced tokens, ascending, into every row of the group.
void Problem::Write(KeepList* keep) const {
  for (const int64_t row : rows_) {
    const int64_t layer = row / kv_heads_;
    const int64_t head = row % kv_heads_;
    KVERN_CHECK(keep->Count(layer, head) == forced_ + picks_);
    int32_t* out = keep->Row(layer, head);
    int32_t* end = std::copy(picked_, picked_ + picks_, out);
    for (int64_t token = 0; token < args_.scores.shape[2]; ++token) {
      if (args_.forced(layer, head, token) != 0) *end++ = static_cast<int32_t>(token);
    }
    std::sort(out, end);
  }
}

// `first` is the first of the group's rows.
absl::Status DiverseRows(const HeadProblem& first, const DiverseArgs& args,
                         std::span<const int64_t> rows, KeepList* keep) {
  KVERN_RETURN_IF_ERROR(first.runner.Check());
  Problem problem(first.runner, args, rows);
  KVERN_RETURN_IF_ERROR(problem.Begin(keep->Count(first.layer, first.head), first.scratch));
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
  const std::vector<std::vector<int64_t>> problems =
      DiverseProblems(args.groups, keep->layers * keep->kv_heads);
  return runner.ForEach(std::ssize(problems), [&](int64_t item, int worker) {
    const std::vector<int64_t>& rows = problems[item];
    const HeadProblem first = {runner, runner.ScratchOf(worker), rows[0] / keep->kv_heads,
                               rows[0] % keep->kv_heads};
    return HWY_DYNAMIC_DISPATCH(DiverseRows)(first, args, rows, keep);
  });
}

}  // namespace kvern::cpu

#endif  // HWY_ONCE
