// What the last queries attend to is what the next ones will: their attention, pooled over tokens.
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class SnapKvScorer final : public Scorer {
 public:
  explicit SnapKvScorer(const StageParams& params)
      : window_(params.Int("window")),
        pool_width_(static_cast<int32_t>(params.Int("pool_width"))),
        pool_(params.Enum("pool") == "max" ? PoolKind::kMax : PoolKind::kAverage),
        group_(params.Enum("group") == "max" ? GroupReduce::kMax : GroupReduce::kMean) {}

  uint16_t Inputs() const override { return kNeedsQueryWindow; }
  int64_t ProtectedTail() const override { return window_; }

  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    ScratchVector<WindowAttentionArgs> args;
    for (const ScoreInput& input : cohort) {
      KVERN_RETURN_IF_ERROR(CheckWindow(*input.sequence));
      args.push_back({.keys = input.sequence->keys,
                      .queries = LastQueries(*input.sequence),
                      .pool = pool_,
                      .pool_width = pool_width_,
                      .group = group_,
                      .scores = input.scores});
    }
    return backend.WindowAttention(args);
  }

 private:
  absl::Status CheckWindow(const SequenceInput& sequence) const {
    const int64_t sent = sequence.side->window;
    if (sent >= window_) return absl::OkStatus();
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "snapkv: q_window got ", sent, " queries, want at least ", window_)),
                      "INPUT_MISSING");
  }

  // The last `window` of those sent.
  TensorView<const float, 4> LastQueries(const SequenceInput& sequence) const {
    const int64_t sent = sequence.side->window, head_dim = sequence.model->head_dim;
    auto queries = DenseView(sequence.side->q_window.data(), sequence.Layers(),
                             int64_t{sequence.model->q_heads}, sent, head_dim);
    queries.data += (sent - window_) * head_dim;
    queries.shape[2] = window_;
    return queries;
  }

  const int64_t window_;
  const int32_t pool_width_;
  const PoolKind pool_;
  const GroupReduce group_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeSnapKvScorer(const StageParams& params) {
  if (params.Int("pool_width") % 2 == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("snapkv: pool_width got ", params.Int("pool_width"), ", want an odd number"));
  }
  return std::make_unique<SnapKvScorer>(params);
}

}  // namespace kvern::pipeline
