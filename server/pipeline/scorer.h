// Scorer: judges tokens. Policies sit above ops and are written once; which processor runs them
// they never ask.
#ifndef KVERN_SERVER_PIPELINE_SCORER_H_
#define KVERN_SERVER_PIPELINE_SCORER_H_

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/pipeline/sequence_input.h"
#include "server/pipeline/stage_info.h"

namespace kvern::pipeline {

struct ScoreInput {
  const SequenceInput* sequence = nullptr;
  MaskView alive;       // [layers, kv_heads, tokens]
  MaskView candidates;  // alive minus protected
  int64_t sink_tokens = 0;
  const RotationTable* rotation = nullptr;  // of the slots' positions; null: RoPE unknown
  // Written: [layers, kv_heads, tokens], dense memory of the backend, higher = keep. NaN where the
  // token cannot be judged.
  ScoreView scores = {};
};

class Scorer {
 public:
  virtual ~Scorer() = default;
  // Parameters may ask for more than StageInfo.inputs.
  virtual uint16_t Inputs() const = 0;
  // The last tokens that this scorer cannot judge and that are therefore protected (snapkv).
  virtual int64_t ProtectedTail() const { return 0; }
  // Judges sequences of one dtype and geometry. An error leaves the scores of all unspecified, also
  // where one sequence is the reason.
  virtual absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const = 0;

  // A cohort of one.
  absl::Status Score(Backend& backend, ScoreInput input, ScoreView scores) const {
    input.scores = scores;
    return Score(backend, std::span<const ScoreInput>(&input, 1));
  }
};

struct ScorerEntry {
  StageInfo info;
  absl::StatusOr<std::unique_ptr<Scorer>> (*make)(const StageParams& params);
};

std::span<const ScorerEntry> Scorers();
// Errors: InvalidArgument listing the names known, or of the parameters.
absl::StatusOr<std::unique_ptr<Scorer>> MakeScorer(const StageSpec& spec);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SCORER_H_
