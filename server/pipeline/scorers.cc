// Every scorer this build knows: one line each, its parameters above it.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/quoted.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {

using MadeScorer = absl::StatusOr<std::unique_ptr<Scorer>>;
MadeScorer MakeTriAttentionScorer(const StageParams& params);
MadeScorer MakeSnapKvScorer(const StageParams& params);
MadeScorer MakeExpectedAttentionScorer(const StageParams& params);
MadeScorer MakeKeyDiffScorer(const StageParams& params);
MadeScorer MakeKeyNormScorer(const StageParams& params);
MadeScorer MakeValueNormScorer(const StageParams& params);
MadeScorer MakeAttentionMassScorer(const StageParams& params);
MadeScorer MakeExternalScorer(const StageParams& params);
MadeScorer MakeRandomScorer(const StageParams& params);

namespace {

constexpr ParamSpec kTriAttentionParams[] = {
    {"offsets", ParamType::kEnum, "mean", "mean|max", "how future offsets 1, 2, 4, ... combine"},
    {"max_offset", ParamType::kInt, "65536", "1..1048576", "largest future offset, in tokens"},
    {"normalize", ParamType::kEnum, "zscore", "zscore|none", "per query head, before the group"},
    {"group", ParamType::kEnum, "max", "max|mean", "over the query heads of one kv_head"},
};
constexpr ParamSpec kSnapKvParams[] = {
    {"window", ParamType::kInt, "32", "1..4096", "last queries that vote; their tokens stay"},
    {"pool", ParamType::kEnum, "avg", "avg|max", "smoothing over neighbouring tokens"},
    {"pool_width", ParamType::kInt, "5", "1..255", "tokens in one pool, odd"},
    {"group", ParamType::kEnum, "mean", "mean|max", "over the query heads of one kv_head"},
};
constexpr ParamSpec kExpectedAttentionParams[] = {
    {"rank", ParamType::kEnum, "full", "full|1|2|4|8|16|32",
     "eigenpairs of the query covariance that are kept, the rest as its diagonal"},
    {"future", ParamType::kInt, "512", "1..65536", "future positions averaged over"},
    {"epsilon", ParamType::kFloat, "0", "0..1", "added to the attention before the value norm"},
    {"value_norm", ParamType::kBool, "true", "false|true", "multiply by |v|"},
    {"log", ParamType::kBool, "false", "false|true", "the logarithm; wants epsilon=0"},
};
constexpr ParamSpec kKeyDiffParams[] = {
    {"unrotate", ParamType::kBool, "false", "false|true", "compare keys before RoPE"},
};
constexpr ParamSpec kAttentionMassParams[] = {
    {"per_visible", ParamType::kBool, "true", "false|true", "divide by the queries that saw it"},
    {"value_norm", ParamType::kBool, "false", "false|true", "multiply by |v|"},
    {"log", ParamType::kBool, "false", "false|true", "the logarithm"},
};
constexpr ParamSpec kRandomParams[] = {
    {"seed", ParamType::kInt, "0", "0..9223372036854775807", "other seeds, other sets"},
};

constexpr ScorerEntry kScorers[] = {
    {{"triattention", "Query centres against keys at future offsets (TriAttention).",
      kTriAttentionParams, kNeedsCentres | kNeedsRope},
     &MakeTriAttentionScorer},
    {{"snapkv", "Attention of the last queries, pooled (SnapKV, arXiv 2404.14469).", kSnapKvParams,
      kNeedsQueryWindow},
     &MakeSnapKvScorer},
    {{"expected_attention",
      "Attention that Gaussian future queries would pay (Expected Attention, "
      "arXiv 2510.00636).",
      kExpectedAttentionParams, kNeedsMoments | kNeedsRope | kNeedsValues},
     &MakeExpectedAttentionScorer},
    {{"keydiff",
      "Keys unlike the mean key direction (KeyDiff, arXiv 2504.15364). unrotate needs rope.",
      kKeyDiffParams},
     &MakeKeyDiffScorer},
    {{"key_norm", "Keys of small norm (L2 norm eviction, arXiv 2406.11430).", {}},
     &MakeKeyNormScorer},
    {{"value_norm", "Values of large norm.", {}, kNeedsValues}, &MakeValueNormScorer},
    {{"attention_mass",
      "Attention that the frontend saw each token receive (H2O, arXiv 2306.14048). value_norm "
      "needs values.",
      kAttentionMassParams, kNeedsAttentionMass},
     &MakeAttentionMassScorer},
    {{"external", "Scores that the caller computed.", {}, kNeedsExternalScores},
     &MakeExternalScorer},
    {{"random", "Uniform numbers, the same for a token wherever it lies: the control.",
      kRandomParams},
     &MakeRandomScorer},
};

}  // namespace

std::span<const ScorerEntry> Scorers() { return kScorers; }

absl::StatusOr<std::unique_ptr<Scorer>> MakeScorer(const StageSpec& spec) {
  std::vector<const char*> known;
  for (const ScorerEntry& entry : kScorers) {
    if (spec.name == entry.info.name) {
      KVERN_ASSIGN_OR_RETURN(const StageParams params, StageParams::Parse(spec, entry.info.params));
      return entry.make(params);
    }
    known.push_back(entry.info.name);
  }
  return WithField(
      absl::InvalidArgumentError(absl::StrCat("scorer: got ", Quoted(spec.name), ", want one of ",
                                              absl::StrJoin(known, ", "))),
      "name");
}

}  // namespace kvern::pipeline
