// The caller judged the tokens itself: score = what it sent.
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class ExternalScorer final : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsExternalScores; }
  absl::Status Score(Backend&, const ScoreInput& input, ScoreView scores) const override {
    const std::vector<float>& sent = input.sequence->side->external_scores;
    KVERN_CHECK(static_cast<int64_t>(sent.size()) == scores.Size());
    const auto source = DenseView(sent.data(), scores.shape[0], scores.shape[1], scores.shape[2]);
    for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
      for (int64_t head = 0; head < scores.shape[1]; ++head) {
        for (int64_t token = 0; token < scores.shape[2]; ++token) {
          scores(layer, head, token) = source(layer, head, token);
        }
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeExternalScorer(const StageParams&) {
  return std::make_unique<ExternalScorer>();
}

}  // namespace kvern::pipeline
