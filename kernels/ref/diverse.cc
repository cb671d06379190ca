// Eager greedy: after each pick every candidate's redundancy takes in the cosine to that pick.
#include "kernels/ref/diverse.h"

#include <algorithm>

#include "kernels/base/diverse_rules.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/lanes.h"
#include "kernels/base/order_key.h"
#include "kernels/base/status_macros.h"

namespace kvern::ref {
namespace {

// One problem: the candidates' scores, and their values in every row of the group.
class Problem {
 public:
  Problem(const DiverseArgs& args, std::span<const int64_t> rows);

  int64_t Candidates() const { return static_cast<int64_t>(tokens_.size()); }
  // The unpicked candidate of the largest gain, then marked as picked.
  int64_t PickBest();
  int32_t Token(int64_t candidate) const { return tokens_[candidate]; }
  void AddPick(int64_t pick, int64_t first, int64_t last);

 private:
  double CosineSum(int64_t a, int64_t b) const;

  const DiverseArgs& args_;
  int64_t rows_;
  int64_t head_dim_ = 0;
  std::vector<int32_t> tokens_;
  std::vector<float> scores_;
  std::vector<float> values_;   // [candidates, rows, head_dim]
  std::vector<float> inverse_;  // [candidates, rows] 1 / |value|
  std::vector<float> redundancy_;
  std::vector<bool> picked_;
};

Problem::Problem(const DiverseArgs& args, std::span<const int64_t> rows)
    : args_(args), rows_(static_cast<int64_t>(rows.size())) {
  const int64_t kv_heads = args.scores.shape[1];
  const int64_t layer = rows[0] / kv_heads;
  const int64_t head = rows[0] % kv_heads;
  for (int64_t token = 0; token < args.scores.shape[2]; ++token) {
    if (args.candidates(layer, head, token) == 0) continue;
    tokens_.push_back(static_cast<int32_t>(token));
    scores_.push_back(args.scores(layer, head, token));
  }
  // Without a penalty only the order counts, and scaling could merge neighbours.
  if (args.scale == ScoreScale::kMinMax && args.lambda > 0.0f) ScaleToUnit(scores_);
  if (!args.values.empty()) head_dim_ = args.values[0].head_dim;
  values_.resize(tokens_.size() * rows.size() * head_dim_);
  float* value = values_.data();
  for (const int32_t token : tokens_) {
    for (const int64_t row : rows) {
      const KvRef& ref = args.values[row / kv_heads];
      LoadKvRow(ref, ref.Address(row % kv_heads, token), value);
      inverse_.push_back(InverseLength(LaneDot(value, value, head_dim_)));
      value += head_dim_;
    }
  }
  redundancy_.resize(tokens_.size(), 0.0f);
  picked_.resize(tokens_.size(), false);
}

int64_t Problem::PickBest() {
  int64_t best = -1;
  uint64_t best_rank = 0;
  for (int64_t i = 0; i < Candidates(); ++i) {
    if (picked_[i]) continue;
    const float gain = DiverseGain(scores_[i], args_.lambda, redundancy_[i]);
    const uint32_t place = static_cast<uint32_t>(i);
    const uint64_t rank = RankKey(gain, args_.tie == TieRule::kRecent ? place : ~place);
    if (best < 0 || rank > best_rank) {
      best = i;
      best_rank = rank;
    }
  }
  picked_[best] = true;
  return best;
}

double Problem::CosineSum(int64_t a, int64_t b) const {
  double sum = 0.0;
  for (int64_t row = 0; row < rows_; ++row) {
    const int64_t at_a = a * rows_ + row;
    const int64_t at_b = b * rows_ + row;
    const float dot =
        LaneDot(values_.data() + at_a * head_dim_, values_.data() + at_b * head_dim_, head_dim_);
    sum += RowCosine(dot, inverse_[at_a], inverse_[at_b]);
  }
  return sum;
}

void Problem::AddPick(int64_t pick, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    if (picked_[i]) continue;
    redundancy_[i] = std::max(redundancy_[i], Redundancy(CosineSum(i, pick), rows_));
  }
}

struct RowCounts {
  int64_t forced = 0;
  int64_t picks = 0;
};

RowCounts CountsOf(const DiverseArgs& args, const KeepList& keep, int64_t row) {
  RowCounts counts;
  const int64_t layer = row / keep.kv_heads;
  const int64_t head = row % keep.kv_heads;
  for (int64_t token = 0; token < args.scores.shape[2]; ++token) {
    counts.forced += args.forced(layer, head, token) != 0 ? 1 : 0;
  }
  counts.picks = keep.Count(layer, head) - counts.forced;
  return counts;
}

// The picks and the row's forced tokens, ascending.
void WriteRow(const DiverseArgs& args, std::span<const int32_t> picks, int64_t row,
              KeepList* keep) {
  const int64_t layer = row / keep->kv_heads;
  const int64_t head = row % keep->kv_heads;
  int32_t* out = keep->Row(layer, head);
  int32_t* end = std::copy(picks.begin(), picks.end(), out);
  for (int64_t token = 0; token < args.scores.shape[2]; ++token) {
    if (args.forced(layer, head, token) != 0) *end++ = static_cast<int32_t>(token);
  }
  std::sort(out, end);
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> DiversePicks(const StopCheck* stop, const DiverseArgs& args,
                                                  std::span<const int64_t> rows, int64_t picks) {
  KVERN_CHECK(args.lambda >= 0.0f && std::isfinite(args.lambda));
  Problem problem(args, rows);
  KVERN_CHECK(picks >= 0 && picks <= problem.Candidates());
  std::vector<int32_t> order;
  while (static_cast<int64_t>(order.size()) < picks) {
    const int64_t pick = problem.PickBest();
    order.push_back(problem.Token(pick));
    for (int64_t first = 0; first < problem.Candidates(); first += kTileTokens) {
      if (stop != nullptr) KVERN_RETURN_IF_ERROR(stop->Check());
      problem.AddPick(pick, first, std::min(first + kTileTokens, problem.Candidates()));
    }
  }
  return order;
}

absl::Status Diverse(const StopCheck* stop, const DiverseArgs& args, KeepList* keep) {
  KVERN_CHECK(keep->layers == args.scores.shape[0] && keep->kv_heads == args.scores.shape[1]);
  const int64_t rows = keep->layers * keep->kv_heads;
  for (const std::vector<int64_t>& problem : DiverseProblems(args.groups, rows)) {
    if (stop != nullptr) KVERN_RETURN_IF_ERROR(stop->Check());
    const RowCounts counts = CountsOf(args, *keep, problem[0]);
    KVERN_ASSIGN_OR_RETURN(const std::vector<int32_t> picks,
                           DiversePicks(stop, args, problem, counts.picks));
    for (const int64_t row : problem) {
      KVERN_CHECK(keep->Count(row / keep->kv_heads, row % keep->kv_heads) ==
                  counts.forced + counts.picks);
      WriteRow(args, picks, row, keep);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
