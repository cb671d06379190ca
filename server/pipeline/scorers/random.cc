// The control of every comparison: uniform numbers that depend on the token, not on where it lies.
#include <vector>

#include "kernels/base/status_macros.h"
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
  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    for (const ScoreInput& input : cohort) {
      const std::vector<float> drawn = Draw(input);
      KVERN_RETURN_IF_ERROR(backend.CopyIn(std::as_bytes(std::span(drawn)),
                                           reinterpret_cast<std::byte*>(input.scores.data)));
    }
    return absl::OkStatus();
  }

 private:
  std::vector<float> Draw(const ScoreInput& input) const {
    const SequenceInput& sequence = *input.sequence;
    const int64_t layers = input.scores.shape[0], heads = input.scores.shape[1];
    std::vector<float> scores;
    scores.reserve(input.scores.Size());
    for (int64_t layer = 0; layer < layers; ++layer) {
      // The layer's index in the model: a subset of the layers draws the same numbers.
      const uint64_t of_layer = Absorb(Mix(seed_), sequence.layer_indices[layer]);
      for (int64_t head = 0; head < heads; ++head) {
        const uint64_t of_head = Absorb(of_layer, head);
        for (int64_t token = 0; token < input.scores.shape[2]; ++token) {
          const uint64_t drawn = Absorb(of_head, sequence.Position(layer, head, token));
          scores.push_back(static_cast<float>(drawn >> 40) * 0x1p-24f);  // [0, 1)
        }
      }
    }
    return scores;
  }

  const uint64_t seed_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeRandomScorer(const StageParams& params) {
  return std::make_unique<RandomScorer>(params);
}

}  // namespace kvern::pipeline
