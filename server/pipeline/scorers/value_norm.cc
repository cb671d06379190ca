// A token with a large value vector moves the attention output most: score = |v|.
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class ValueNormScorer final : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsValues; }
  absl::Status Score(Backend& backend, const ScoreInput& input, ScoreView scores) const override {
    return backend.RowNorms(input.sequence->values, scores);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeValueNormScorer(const StageParams&) {
  return std::make_unique<ValueNormScorer>();
}

}  // namespace kvern::pipeline
