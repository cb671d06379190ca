// The caller judged the tokens itself: score = what it sent.
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class ExternalScorer final : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsExternalScores; }
  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    for (const ScoreInput& input : cohort) {
      const std::span<const float> sent(input.sequence->side->external_scores);
      KVERN_CHECK(static_cast<int64_t>(sent.size()) == input.scores.Size());
      KVERN_RETURN_IF_ERROR(
          backend.CopyIn(std::as_bytes(sent), reinterpret_cast<std::byte*>(input.scores.data)));
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeExternalScorer(const StageParams&) {
  return std::make_unique<ExternalScorer>();
}

}  // namespace kvern::pipeline
