// Keys unlike the mean key direction carry what no other key does: score = -cos(k, mean unit key).
#include <vector>

#include "kernels/base/reuse.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

class KeyDiffScorer final : public Scorer {
 public:
  explicit KeyDiffScorer(const StageParams& params) : unrotate_(params.Bool("unrotate")) {}

  uint16_t Inputs() const override { return unrotate_ ? kNeedsRope : kNeedsNothing; }
  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    // The cosine is blind to the attention scaling that cached keys carry, so a pure rotation will
    // do.
    ScratchVector<KeyDiffArgs> args;
    for (const ScoreInput& input : cohort) {
      args.push_back({.keys = input.sequence->keys,
                      .unrotate = unrotate_ ? input.rotation : nullptr,
                      .alive = input.alive,
                      .scores = input.scores});
    }
    return backend.KeyDiff(args);
  }

 private:
  const bool unrotate_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeKeyDiffScorer(const StageParams& params) {
  return std::make_unique<KeyDiffScorer>(params);
}

}  // namespace kvern::pipeline
