// Future queries are Gaussian with the model's moments, so the attention they will pay a key has a
// closed form: softmax of k.mu'/sqrt(D) + k'Sigma'k/(2D) (policies.md 3.6).
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"
#include "server/pipeline/scorers/moment_basis.h"

namespace kvern::pipeline {
namespace {

void Multiply(double factor, std::vector<double>* values) {
  for (double& value : *values) value *= factor;
}

// Alive tokens after the sinks; heads share a row where those of `alive` do.
struct CountedMask {
  std::vector<uint8_t> bytes;
  MaskView view;
};

CountedMask AfterSinks(MaskView alive, int64_t sink_tokens) {
  const bool shared = alive.stride[0] == 0 && alive.stride[1] == 0;
  const int64_t rows = shared ? 1 : alive.shape[0] * alive.shape[1];
  const int64_t tokens = alive.shape[2];
  CountedMask counted;
  counted.bytes.assign(rows * tokens, 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t token = sink_tokens; token < tokens; ++token) {
      counted.bytes[row * tokens + token] =
          alive(row / alive.shape[1], row % alive.shape[1], token);
    }
  }
  counted.view = DenseView(static_cast<const uint8_t*>(counted.bytes.data()), alive.shape[0],
                           alive.shape[1], tokens);
  if (shared) counted.view.stride[0] = counted.view.stride[1] = 0;
  return counted;
}

class ExpectedAttentionScorer final : public Scorer {
 public:
  explicit ExpectedAttentionScorer(const StageParams& params)
      : epsilon_(static_cast<float>(params.Float("epsilon"))),
        value_norm_(params.Bool("value_norm")),
        log_(params.Bool("log")) {
    const std::string& rank = params.Enum("rank");
    moments_.rank = rank == "full" ? 0 : std::stoll(rank);  // one of the declared words
    moments_.future = params.Int("future");
  }

  uint16_t Inputs() const override {
    return kNeedsMoments | kNeedsRope | (value_norm_ ? kNeedsValues : kNeedsNothing);
  }

  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    std::vector<Moments> moments;
    moments.reserve(cohort.size());
    ScratchVector<ExpectedAttentionArgs> args;
    for (const ScoreInput& input : cohort) {
      KVERN_ASSIGN_OR_RETURN(Moments of_sequence, MomentsOf(input));
      args.push_back(ArgsOf(input, moments.emplace_back(std::move(of_sequence))));
    }
    return backend.ExpectedAttention(args);
  }

 private:
  struct Moments {
    MomentBasis turned;  // to the sequence's future, scaled as the op wants it
    CountedMask counted;
  };

  absl::StatusOr<Moments> MomentsOf(const ScoreInput& input) const {
    const ModelSpec& model = *input.sequence->model;
    KVERN_ASSIGN_OR_RETURN(const auto basis, MomentBasisOf(*input.sequence, moments_));
    Moments moments = {TurnedTo(*basis, model.rope, input.sequence->logical_tokens),
                       AfterSinks(input.alive, input.sink_tokens)};
    MomentBasis& turned = moments.turned;
    const double head_dim = model.head_dim;
    Multiply(1 / std::sqrt(head_dim), &turned.mean);
    // A factor is squared by the op, the covariance itself is not.
    Multiply(turned.full ? 0.5 / head_dim : std::sqrt(0.5 / head_dim), &turned.factors);
    Multiply(0.5 / head_dim, &turned.rest);
    return moments;
  }

  ExpectedAttentionArgs ArgsOf(const ScoreInput& input, const Moments& moments) const {
    const SequenceInput& sequence = *input.sequence;
    const MomentBasis& turned = moments.turned;
    const int64_t layers = sequence.Layers(), q_heads = sequence.model->q_heads;
    return {.keys = sequence.keys,
            .values = sequence.values,
            .q_heads = sequence.model->q_heads,
            .rank = static_cast<int32_t>(turned.rank),
            .full = turned.full,
            .linear = Const(turned.mean, layers, q_heads, turned.head_dim),
            .factors = Const(turned.factors, layers, q_heads, turned.rank, turned.head_dim),
            .diagonal = turned.full ? TensorView<const double, 3>()
                                    : Const(turned.rest, layers, q_heads, turned.head_dim),
            .counted = moments.counted.view,
            .epsilon = epsilon_,
            .value_norm = value_norm_,
            .log = log_,
            .scores = input.scores};
  }

  template <class... Extent>
  static TensorView<const double, sizeof...(Extent)> Const(const std::vector<double>& values,
                                                           Extent... extent) {
    return DenseView(values.data(), extent...);
  }

  MomentOptions moments_;
  const float epsilon_;
  const bool value_norm_;
  const bool log_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeExpectedAttentionScorer(const StageParams& params) {
  if (params.Bool("log") && params.Float("epsilon") != 0) {
    return absl::InvalidArgumentError(absl::StrCat("expected_attention: epsilon got ",
                                                   params.Float("epsilon"), ", want 0 with log"));
  }
  return std::make_unique<ExpectedAttentionScorer>(params);
}

}  // namespace kvern::pipeline
