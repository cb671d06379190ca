// The control of every comparison: uniform numbers that depend on the token, not on where it lies.
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

constexpr uint64_t kGoldenGamma = 0x9E3779B97F4A7C15u;

// SplitMix64's finalizer (Steele, Lea, Flood 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t Absorb(uint64_t state, uint64_t value) { return Mix(state + kGoldenGamma * (value + 1)); }

class RandomScorer final : public Scorer {
 public:
  explicit RandomScorer(const StageParams& params)
      : seed_(static_cast<uint64_t>(params.Int("seed"))) {}

  uint16_t Inputs() const override { return kNeedsNothing; }
  absl::Status Score(Backend&, const ScoreInput& input, ScoreView scores) const override {
    const SequenceInput& sequence = *input.sequence;
    for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
      // The layer's index in the model: a subset of the layers draws the same numbers.
      const uint64_t of_layer = Absorb(Mix(seed_), sequence.layer_indices[layer]);
      for (int64_t head = 0; head < scores.shape[1]; ++head) {
        const uint64_t of_head = Absorb(of_layer, head);
        for (int64_t token = 0; token < scores.shape[2]; ++token) {
          const uint64_t drawn = Absorb(of_head, sequence.Position(layer, head, token));
          scores(layer, head, token) = static_cast<float>(drawn >> 40) * 0x1p-24f;  // [0, 1)
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  const uint64_t seed_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeRandomScorer(const StageParams& params) {
  return std::make_unique<RandomScorer>(params);
}

}  // namespace kvern::pipeline
