// Scores of a cohort in memory of the backend: one set per scorer and sequence.
#ifndef KVERN_SERVER_PIPELINE_SCORE_SETS_H_
#define KVERN_SERVER_PIPELINE_SCORE_SETS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/reuse.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {

class ScoreSets {
 public:
  ScoreSets() = default;  // of no scorer: all views are null
  // Room for the scores of `scorers` scorers. Errors: ResourceExhausted.
  static absl::StatusOr<ScoreSets> Make(Backend& backend, std::span<const ScoreInput> cohort,
                                        int64_t scorers);

  // Scores the cohort by the policy's scorers, blended into one set per sequence.
  absl::Status Fill(Backend& backend, const ResolvedPolicy& policy,
                    std::span<const ScoreInput> cohort);
  // The blended scores of one sequence, dense [layers, kv_heads, tokens].
  ScoreView Of(size_t sequence) const { return views_.empty() ? ScoreView() : views_[sequence]; }

 private:
  Buffer memory_;
  ScratchVector<ScoreView> views_;  // [scorers, sequences]
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SCORE_SETS_H_
