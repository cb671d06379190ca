// A token with a large value vector moves the attention output most: score = |v|.
#include <vector>

#include "kernels/base/reuse.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class ValueNormScorer final : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsValues; }
  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    ScratchVector<RowNormsArgs> args;
    for (const ScoreInput& input : cohort) args.push_back({input.sequence->values, input.scores});
    return backend.RowNorms(args);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeValueNormScorer(const StageParams&) {
  return std::make_unique<ValueNormScorer>();
}

}  // namespace kvern::pipeline
