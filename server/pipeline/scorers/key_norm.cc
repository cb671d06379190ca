// Keys of small norm attract attention in most heads: score = -|k|.
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class KeyNormScorer final : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsNothing; }
  absl::Status Score(Backend& backend, const ScoreInput& input, ScoreView scores) const override {
    KVERN_RETURN_IF_ERROR(backend.RowNorms(input.sequence->keys, scores));
    return backend.Scale(-1.0f, scores);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeKeyNormScorer(const StageParams&) {
  return std::make_unique<KeyNormScorer>();
}

}  // namespace kvern::pipeline
