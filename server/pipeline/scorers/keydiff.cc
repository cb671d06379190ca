// Keys unlike the mean key direction carry what no other key does: score = -cos(k, mean unit key).
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class KeyDiffScorer final : public Scorer {
 public:
  explicit KeyDiffScorer(const StageParams& params) : unrotate_(params.Bool("unrotate")) {}

  uint16_t Inputs() const override { return unrotate_ ? kNeedsRope : kNeedsNothing; }
  absl::Status Score(Backend& backend, const ScoreInput& input, ScoreView scores) const override {
    // The cosine is blind to the attention scaling that cached keys carry, so a pure rotation will
    // do.
    return backend.KeyDiff({.keys = input.sequence->keys,
                            .unrotate = unrotate_ ? input.rotation : nullptr,
                            .alive = input.alive},
                           scores);
  }

 private:
  const bool unrotate_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeKeyDiffScorer(const StageParams& params) {
  return std::make_unique<KeyDiffScorer>(params);
}

}  // namespace kvern::pipeline
