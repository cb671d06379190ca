// The ops that can be measured, by name: one table for `kvern bench` and for make bench.
#ifndef KVERN_CLIENT_CLI_BENCH_OPS_H_
#define KVERN_CLIENT_CLI_BENCH_OPS_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cli/bench/layer.h"
#include "client/cli/bench/measure.h"

namespace kvern::bench {

// What an op is measured on; all borrowed, and outlives the op.
struct Setting {
  const Layer* layer = nullptr;
  Backend* backend = nullptr;
  int64_t q_heads = 8;  // a multiple of kv_heads
  const Shape& shape() const { return layer->shape; }
};

// An op with its inputs made.
struct PreparedOp {
  Run run;
  // Must be read or written however the op is written: inputs once, outputs once, with the angles
  // of RoPE where keys are turned.
  int64_t floor_bytes = 0;
};

struct Op {
  const char* name;  // "score:keydiff"
  const char* help;
  bool reads_queries;  // its work grows with q_heads
  absl::StatusOr<PreparedOp> (*prepare)(const Setting& setting);
};

std::span<const Op> Ops();
// Null when there is none of this name.
const Op* FindOp(absl::string_view name);

// Shares of the tokens that ops keep.
inline constexpr int64_t kSelectStep = 16;    // topk and sparse copies: 2048 of 32768
inline constexpr int64_t kDiverseStep = 256;  // 128 of 32768
inline constexpr int64_t kMoveStep = 2;       // moves: half

inline constexpr int64_t kCohortTokens = 512;  // of one sequence: 64 of them in 32768

// Factories, one file per family.
absl::StatusOr<PreparedOp> PrepareKeyNorm(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareKeyDiff(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareTriAttention(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareExpectedAttention(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareSnapKv(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareMeanKey(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareTopK(const Setting& setting);
// Every `step`-th token by alpha.
absl::StatusOr<PreparedOp> PrepareDiverse(const Setting& setting, int64_t step);
// All tokens of one role under a codec in the words of policies ("lm4+rm").
absl::StatusOr<PreparedOp> PrepareEncode(const Setting& setting, absl::string_view codec,
                                         Role role);
absl::StatusOr<PreparedOp> PrepareDecode(const Setting& setting, absl::string_view codec,
                                         Role role);
// The keys' memory to other memory as one piece: what moves are held against.
absl::StatusOr<PreparedOp> PrepareMemcpy(const Setting& setting);
// Keys and values, every `step`-th token, into other blocks.
absl::StatusOr<PreparedOp> PrepareCopy(const Setting& setting, int64_t step);
absl::StatusOr<PreparedOp> PrepareMoveInPlace(const Setting& setting);
// Whole stages of the pipeline, with the presets' own scorers.
absl::StatusOr<PreparedOp> PrepareDefaultScores(const Setting& setting);
absl::StatusOr<PreparedOp> PreparePlan(const Setting& setting);
// The layer as a cohort of sequences of kCohortTokens tokens.
absl::StatusOr<PreparedOp> PrepareCohort(const Setting& setting);
absl::StatusOr<PreparedOp> PreparePack(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareUnpack(const Setting& setting);
absl::StatusOr<PreparedOp> PrepareEvict(const Setting& setting);

}  // namespace kvern::bench

#endif  // KVERN_CLIENT_CLI_BENCH_OPS_H_
