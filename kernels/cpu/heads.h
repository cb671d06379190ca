// One (layer, kv_head) problem of an op, and how all of them run.
#ifndef KVERN_KERNELS_CPU_HEADS_H_
#define KVERN_KERNELS_CPU_HEADS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

struct HeadProblem {
  const Runner& runner;  // for Check
  Scratch& scratch;      // reset, for this problem alone
  int64_t layer;
  int64_t head;
};

// Runs work for every score row of `shape` ([layers, kv_heads, tokens]).
inline absl::Status ForEachHead(Runner& runner, const int64_t (&shape)[3],
                                absl::FunctionRef<absl::Status(const HeadProblem&)> work) {
  const int64_t kv_heads = shape[1];
  return runner.ForEach(shape[0] * kv_heads, [&](int64_t item, int worker) {
    Scratch& scratch = runner.ScratchOf(worker);
    scratch.Reset();
    return work({runner, scratch, item / kv_heads, item % kv_heads});
  });
}

// Tokens are read in chunks of one lane round; the check runs once per 256-token tile.
inline constexpr int64_t kChunkTokens = kLanes;
static_assert(kTileTokens % kChunkTokens == 0);

constexpr int64_t PadToLanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline absl::Status CheckAtTile(const Runner& runner, int64_t token) {
  return token % kTileTokens == 0 ? runner.Check() : absl::OkStatus();
}

// Tokens of one head that a score row has room for.
inline int64_t TokensOf(const KvRef& ref, int64_t head, int64_t row_tokens) {
  return std::min(ref.Length(head), row_tokens);
}

inline constexpr float kNoScore = std::numeric_limits<float>::quiet_NaN();

// Rounds `row` [tokens] to scores once; what is not finite, and tokens from there to the end of the
// score row, have none.
inline void StoreScores(const double* row, int64_t tokens, TensorView<float, 1> scores) {
  for (int64_t token = 0; token < tokens; ++token) {
    const float score = static_cast<float>(row[token]);
    scores(token) = std::isfinite(score) ? score : kNoScore;
  }
  for (int64_t token = tokens; token < scores.shape[0]; ++token) scores(token) = kNoScore;
}
inline TensorView<float, 1> ScoreRow(ScoreView scores, const HeadProblem& problem) {
  return {scores.At(problem.layer, problem.head), {scores.shape[2]}, {scores.stride[2]}};
}

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_HEADS_H_
