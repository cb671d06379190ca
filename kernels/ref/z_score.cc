// Two passes in f64: the large common offset of a score row would cancel badly in one.
#include "kernels/ref/z_score.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {

absl::Status ZScore(const StopCheck* stop, MaskView candidates, ScoreView scores) {
  std::vector<double> row(scores.shape[2]);
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(Check(stop));
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        row[token] = scores(layer, head, token);
      }
      const Spread spread = SpreadOf(row, candidates.At(layer, head));
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        scores(layer, head, token) = ScoreFrom(Standardise(spread, row[token]));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
