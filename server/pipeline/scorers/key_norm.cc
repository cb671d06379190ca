// Keys of small norm attract attention in most heads: score = -|k|.
#include <vector>

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class KeyNormScorer final : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsNothing; }
  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    ScratchVector<RowNormsArgs> args;
    ScratchVector<ScoreView> norms;
    for (const ScoreInput& input : cohort) {
      args.push_back({input.sequence->keys, input.scores});
      norms.push_back(input.scores);
    }
    KVERN_RETURN_IF_ERROR(backend.RowNorms(args));
    return backend.Scale(-1.0f, norms);
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeKeyNormScorer(const StageParams&) {
  return std::make_unique<KeyNormScorer>();
}

}  // namespace kvern::pipeline
