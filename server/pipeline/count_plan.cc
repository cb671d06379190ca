// How many tokens each row keeps: a budget spread over layers, at least what is protected, at most
// what the row holds.
#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/protection.h"

namespace kvern::pipeline {
namespace {

// Ratios such as 0.1 are not exact in binary: 0.1 x 30 tokens are 3.
constexpr double kFloorSlack = 1e-9;

int64_t FloorShare(double share, int64_t tokens) {
  return static_cast<int64_t>(std::floor(share * static_cast<double>(tokens) + kFloorSlack));
}

absl::Status BelowProtected(const std::string& message, absl::string_view field) {
  return WithField(WithReason(absl::FailedPreconditionError(message), "BUDGET_BELOW_PROTECTED"),
                   field);
}

// Rows are (layer, head), layers outermost. Rows of one length share one answer.
struct Row {
  int64_t length = 0;
  size_t hard = 0;  // index of its spans, one for all rows of one length
  int64_t protected_tokens = 0;
  int64_t pinned = 0;
};

class Planner {
 public:
  Planner(const SequenceInput& input, const ResolvedPolicy& policy)
      : input_(input), policy_(policy) {
    rows_.reserve(static_cast<size_t>(input.Layers() * input.KvHeads()));
    for (int64_t layer = 0; layer < input.Layers(); ++layer) {
      for (int64_t head = 0; head < input.KvHeads(); ++head) {
        rows_.push_back(RowOf(RowLength(input, layer, head)));
      }
    }
  }

  absl::StatusOr<CountPlan> Plan() {
    KVERN_ASSIGN_OR_RETURN(const ScratchVector<int64_t> budgets, Budgets());
    CountPlan plan;
    plan.counts.reserve(rows_.size());
    plan.recent.reserve(rows_.size());
    int64_t trimmed = 0;
    for (size_t row = 0; row < rows_.size(); ++row) {
      KVERN_ASSIGN_OR_RETURN(const int64_t count, CountOf(row, budgets[row]));
      trimmed += std::max<int64_t>(0, rows_[row].protected_tokens - count);
      plan.budget_grew |= !IsByteBudget() && count > budgets[row];
      plan.counts.push_back(static_cast<int32_t>(count));
      plan.recent.push_back(RecentOf(row, budgets[row], count));
    }
    if (plan.budget_grew) plan.warnings.push_back(GrowthWarning(budgets));
    if (trimmed > 0) {
      plan.warnings.push_back(absl::StrCat("on_conflict TRIM_OLDEST dropped ", trimmed,
                                           " protected tokens over all layers and heads"));
    }
    return plan;
  }

 private:
  // Nearly always all rows are as long as the first, and nothing need be looked up.
  Row RowOf(int64_t length) {
    if (!rows_.empty() && rows_.back().length == length) return rows_.back();
    if (!rows_.empty()) of_length_.try_emplace(rows_.back().length, rows_.back());
    const auto known = of_length_.find(length);
    if (known != of_length_.end()) return known->second;
    hard_.push_back(HardProtected(input_, policy_, length));
    return {length, hard_.size() - 1, CountTokens(hard_.back()),
            PinnedPrefix(input_, policy_, length)};
  }

  bool IsByteBudget() const {
    return policy_.budget ? std::holds_alternative<ByteBudget>(*policy_.budget)
                          : policy_.byte_share.has_value();
  }

  // Whether the budgeter treats all layers alike; its counts are then equal, rests included.
  bool EqualLayers() const {
    for (const BudgeterEntry& entry : Budgeters()) {
      if (policy_.budgeter_spec.name == entry.info.name) {
        return (entry.info.shape_classes >> static_cast<int>(ShapeClass::kS3)) == 0;
      }
    }
    return false;
  }

  // [rows] tokens asked for, each at most what the row holds.
  absl::StatusOr<ScratchVector<int64_t>> Budgets() const {
    if (IsByteBudget()) return ByteBudgets();
    if (!policy_.budget) return Lengths();
    if (const auto* tokens = std::get_if<TokenBudget>(&*policy_.budget)) {
      return Spread(input_.Layers() * std::min(tokens->tokens, input_.Tokens()));
    }
    return RatioBudgets(std::get<KeepRatioBudget>(*policy_.budget).ratio);
  }

  ScratchVector<int64_t> Lengths() const {
    ScratchVector<int64_t> lengths;
    lengths.reserve(rows_.size());
    for (const Row& row : rows_) lengths.push_back(row.length);
    return lengths;
  }

  absl::StatusOr<ScratchVector<int64_t>> Spread(int64_t total_tokens) const {
    KVERN_ASSIGN_OR_RETURN(
        const ScratchVector<int64_t> layers,
        policy_.budgeter->LayerBudgets({.input = &input_, .total_tokens = total_tokens}));
    ScratchVector<int64_t> budgets;
    budgets.reserve(rows_.size());
    for (size_t row = 0; row < rows_.size(); ++row) {
      const int64_t layer = static_cast<int64_t>(row) / input_.KvHeads();
      budgets.push_back(std::min(layers[static_cast<size_t>(layer)], rows_[row].length));
    }
    return budgets;
  }

  absl::StatusOr<ScratchVector<int64_t>> RatioBudgets(double ratio) const {
    ScratchVector<int64_t> budgets;
    int64_t sum = 0;
    for (const Row& row : rows_) {
      budgets.push_back(FloorShare(ratio, row.length));
      sum += budgets.back();
    }
    if (EqualLayers() || rows_.empty()) return budgets;
    return Spread(sum / input_.KvHeads());
  }

  // Bytes when each row keeps its budget, protected tokens included.
  int64_t BytesOf(const ScratchVector<int64_t>& budgets) const {
    ScratchVector<int32_t> counts;
    counts.reserve(rows_.size());
    for (size_t row = 0; row < rows_.size(); ++row) {
      counts.push_back(static_cast<int32_t>(std::max(budgets[row], rows_[row].protected_tokens)));
    }
    return PackedBytes(input_, policy_, counts);
  }

  // Quantize first, then evict: the codec is given, and as many tokens stay as its bytes allow.
  absl::StatusOr<ScratchVector<int64_t>> ByteBudgets() const {
    const int64_t allowed = AllowedBytes();
    ScratchVector<int64_t> best = Lengths();
    if (BytesOf(best) <= allowed) return best;
    best.assign(rows_.size(), 0);
    if (const int64_t least = BytesOf(best); least > allowed) {
      return BelowProtected(absl::StrCat("byte budget got ", allowed, ", want at least ", least,
                                         ": the bytes of the protected tokens (",
                                         policy_.sink_tokens, " sinks included) and of the format"),
                            policy_.budget ? "policy.budget.bytes" : "policy.preset");
    }
    // Steps of one token in every layer where layers are alike, so that their counts stay equal.
    const int64_t step = EqualLayers() ? input_.Layers() : 1;
    int64_t fits = 0;
    int64_t exceeds = input_.Layers() * input_.Tokens() / step + 1;
    while (exceeds - fits > 1) {
      const int64_t middle = fits + (exceeds - fits) / 2;
      KVERN_ASSIGN_OR_RETURN(ScratchVector<int64_t> budgets, Spread(middle * step));
      if (BytesOf(budgets) <= allowed) {
        fits = middle;
        best = std::move(budgets);
      } else {
        exceeds = middle;
      }
    }
    return best;
  }

  int64_t AllowedBytes() const {
    if (policy_.budget) return std::get<ByteBudget>(*policy_.budget).bytes;
    return static_cast<int64_t>(
        std::floor(*policy_.byte_share * static_cast<double>(BytesBefore(input_))));
  }

  absl::StatusOr<int64_t> CountOf(size_t index, int64_t budget) const {
    const Row& row = rows_[index];
    if (row.protected_tokens <= budget || IsByteBudget()) {
      return std::max(budget, row.protected_tokens);
    }
    if (policy_.on_conflict == OnConflict::kGrowBudget) return row.protected_tokens;
    if (policy_.on_conflict == OnConflict::kTrimOldest) return std::max(budget, row.pinned);
    const int64_t heads = input_.KvHeads();
    return BelowProtected(
        absl::StrCat("on_conflict FAIL: layer ", static_cast<int64_t>(index) / heads, ", kv_head ",
                     static_cast<int64_t>(index) % heads, " got a budget of ", budget,
                     " tokens, want at least its ", row.protected_tokens, " protected ones"),
        "policy.budget");
  }

  int32_t RecentOf(size_t index, int64_t budget, int64_t count) const {
    const Row& row = rows_[index];
    const int64_t wanted = std::min(
        row.length, std::max(policy_.recent_tokens, FloorShare(policy_.recent_share, budget)));
    if (count < row.protected_tokens) return 0;  // trimmed: nothing is left for the soft ones
    return static_cast<int32_t>(RecentThatFit(hard_[row.hard], row.length, count, wanted));
  }

  std::string GrowthWarning(const ScratchVector<int64_t>& budgets) const {
    const bool all_zero =
        std::all_of(budgets.begin(), budgets.end(), [](int64_t budget) { return budget == 0; });
    if (all_zero) {
      return absl::StrCat("budget 0 keeps the protected tokens (", policy_.sink_tokens, " sinks)");
    }
    return "the budget grew to hold the protected tokens";
  }

  const SequenceInput& input_;
  const ResolvedPolicy& policy_;
  ScratchVector<Row> rows_;
  ScratchVector<TokenSpans> hard_;
  std::map<int64_t, Row> of_length_;  // of rows before the last
};

}  // namespace

bool CountPlan::EverythingStays(const SequenceInput& input) const {
  size_t row = 0;
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    for (int64_t head = 0; head < input.KvHeads(); ++head, ++row) {
      if (counts[row] < RowLength(input, layer, head)) return false;
    }
  }
  return true;
}

absl::StatusOr<CountPlan> PlanCounts(const SequenceInput& input, const ResolvedPolicy& policy) {
  return Planner(input, policy).Plan();
}

}  // namespace kvern::pipeline
