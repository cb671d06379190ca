// Attention mass per query that could give it, weighed by the value it moves, in f64.
#include "kernels/ref/attention_mass.h"

#include <algorithm>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

// The logarithm of a mass or a norm that may be 0: finite, so that one empty token does not decide
// the spread of its row.
double FlooredLog(double value) {
  constexpr double kFloor = 1e-30;
  return Log(value < kFloor ? kFloor : value);
}

}  // namespace

absl::Status AttentionMass(const StopCheck* stop, const AttentionMassArgs& args, ScoreView scores) {
  std::vector<float> row;
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      for (int64_t token = 0; token < scores.shape[2]; ++token) {
        KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
        double score = args.mass(layer, head, token);
        if (args.per_visible) score /= args.visible(layer, head, token);
        if (args.value_norm) {
          const KvRef& values = args.values[layer];
          row.resize(values.head_dim);
          const bool held = token < TokensOf(values, head, scores.shape[2]);
          if (held) LoadRow(values, head, token, row.data());
          score *= held ? Norm(row.data(), values.head_dim) : NoScore();
        }
        if (args.log) score = FlooredLog(score);
        scores(layer, head, token) = ScoreFrom(score);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
