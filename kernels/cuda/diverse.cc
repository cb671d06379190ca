// Diverse of a cohort in one launch. Masks are host memory: candidates are listed here, and picks
// meet the forced tokens here.
#include "kernels/cuda/diverse.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/base/diverse_rules.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/score_views.h"

namespace kvern::cuda {
namespace {

// One problem on the host side.
struct Selection {
  const DiverseArgs* args;
  std::vector<int64_t> rows;
  std::vector<int32_t> forced;
  std::vector<int32_t> candidates;
  std::vector<int32_t> order;  // tokens as they were picked
};

std::vector<int32_t> TokensIn(MaskView mask, int64_t layer, int64_t head) {
  std::vector<int32_t> tokens;
  for (int64_t token = 0; token < mask.shape[2]; ++token) {
    if (mask(layer, head, token) != 0) tokens.push_back(static_cast<int32_t>(token));
  }
  return tokens;
}

Selection SelectionOf(const DiverseArgs& args, std::vector<int64_t> rows) {
  const int64_t layer = rows[0] / args.keep->kv_heads, head = rows[0] % args.keep->kv_heads;
  Selection selection{&args,
                      std::move(rows),
                      TokensIn(args.forced, layer, head),
                      TokensIn(args.candidates, layer, head),
                      {}};
  const auto forced = static_cast<int64_t>(selection.forced.size());
  const int64_t picks = args.keep->Count(layer, head) - forced;
  KVERN_CHECK(picks >= 0 && picks <= static_cast<int64_t>(selection.candidates.size()));
  selection.order.resize(picks);
  for (const int64_t row : selection.rows) {
    KVERN_CHECK(args.keep->Count(row / args.keep->kv_heads, row % args.keep->kv_heads) ==
                forced + picks);
  }
  return selection;
}

// The picks and the forced tokens of each row, ascending.
void WriteRows(const Selection& selection) {
  KeepList& keep = *selection.args->keep;
  for (const int64_t row : selection.rows) {
    int32_t* const out = keep.Row(row / keep.kv_heads, row % keep.kv_heads);
    int32_t* end = std::copy(selection.order.begin(), selection.order.end(), out);
    for (const int32_t token :
         TokensIn(selection.args->forced, row / keep.kv_heads, row % keep.kv_heads)) {
      *end++ = token;
    }
    std::sort(out, end);
  }
}

}  // namespace

absl::Status Diverse(DeviceContext& device, std::span<const DiverseArgs> cohort) {
  if (cohort.empty()) return absl::OkStatus();
  Op op(device, "diverse");
  std::vector<LayerRefs> values;
  std::vector<ScoreView> scores;
  std::vector<Selection> selections;
  for (const DiverseArgs& args : cohort) {
    KVERN_CHECK(args.lambda >= 0.0f && std::isfinite(args.lambda));
    values.push_back(args.values);
    scores.push_back(ReadOnly(args.scores));
    for (std::vector<int64_t>& rows :
         DiverseProblems(args.groups, args.keep->layers * args.keep->kv_heads)) {
      selections.push_back(SelectionOf(args, std::move(rows)));
    }
  }
  DiverseParams params;
  params.values = op.AddLayers(values, Access::kRead);
  const std::vector<ScoreRow> score_rows = op.ScoreRows(scores, Access::kRead);
  std::vector<DiverseProblem> problems;
  int64_t first_row = 0;
  int32_t first_kv = 0;
  const DiverseArgs* current = &cohort[0];
  for (Selection& selection : selections) {
    const DiverseArgs& args = *selection.args;
    while (current != &args) {
      first_row += current->keep->layers * current->keep->kv_heads;
      first_kv += static_cast<int32_t>(current->values.size());
      ++current;
    }
    std::vector<DiverseRow> rows;
    for (const int64_t row : selection.rows) {
      rows.push_back({first_kv + static_cast<int32_t>(row / args.keep->kv_heads),
                      static_cast<int32_t>(row % args.keep->kv_heads)});
    }
    DiverseProblem problem;
    problem.candidates = static_cast<int32_t>(selection.candidates.size());
    problem.picks = static_cast<int32_t>(selection.order.size());
    if (problem.picks == 0) continue;
    problem.tokens = op.Upload(selection.candidates);
    problem.rows = op.Upload(rows);
    problem.row_count = static_cast<int32_t>(rows.size());
    problem.scores = score_rows[first_row + selection.rows[0]];
    problem.order = op.Result(std::span<int32_t>(selection.order));
    problem.chosen = op.Scratch<int32_t>(problem.picks);
    problem.gains = op.Scratch<float>(problem.candidates);
    problem.redundancy = op.Scratch<float>(problem.candidates);
    problem.seen = op.Scratch<int32_t>(problem.candidates);
    problem.inverse = op.Scratch<float>(int64_t{problem.candidates} * problem.row_count);
    problems.push_back(problem);
  }
  params.problems = op.Upload(problems);
  params.problem_count = static_cast<int64_t>(problems.size());
  params.lambda = cohort[0].lambda;
  // Without a penalty only the order counts, and scaling could merge neighbours.
  params.to_unit = cohort[0].scale == ScoreScale::kMinMax && params.lambda > 0.0f;
  params.recent_wins = cohort[0].tie == TieRule::kRecent;
  params.stop = op.StopWord();
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchDiverse(params, op.stream()));
  KVERN_RETURN_IF_ERROR(op.End());
  for (const Selection& selection : selections) WriteRows(selection);
  return absl::OkStatus();
}

}  // namespace kvern::cuda
