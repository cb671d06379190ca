// One f32 operation per score; NaN goes through.
#include "kernels/ref/elementwise.h"

#include <cmath>

#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

float OneNaN(float score) { return std::isnan(score) ? NoScore() : score; }

float Blended(BlendKind kind, float into, float score) {
  const float sum = into + score;
  if (kind == BlendKind::kSum) return OneNaN(sum);
  // A comparison would hide the NaN of either.
  if (std::isnan(into) || std::isnan(score)) return NoScore();
  return into > score ? into : score;
}

}  // namespace

absl::Status Scale(const StopCheck* stop, float factor, ScoreView scores) {
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(Check(stop));
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        float& score = scores(layer, head, token);
        score = OneNaN(factor * score);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Blend(const StopCheck* stop, BlendKind kind, ConstScoreView scores,
                   ScoreView accumulated) {
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(Check(stop));
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        const float score = scores(layer, head, token);
        float& into = accumulated(layer, head, token);
        into = Blended(kind, into, score);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status HideScores(const StopCheck* stop, const HideScoresArgs& args) {
  *args.nan_candidates = 0;
  const ScoreView& scores = args.scores;
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(Check(stop));
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        float& score = scores(layer, head, token);
        if (args.candidates(layer, head, token) == 0) {
          score = NoScore();
        } else if (std::isnan(score)) {
          ++*args.nan_candidates;
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
