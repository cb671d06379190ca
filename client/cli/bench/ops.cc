// The table: a new op is a line here and a factory in its family's file.
#include "client/cli/bench/ops.h"

namespace kvern::bench {
namespace {

using Prepared = absl::StatusOr<PreparedOp>;

constexpr Op kOps[] = {
    {"score:triattention", "mean over offsets, z-scores, maximum of the group",
     /*reads_queries=*/true, &PrepareTriAttention},
    {"score:expected_attention", "rank 8, log, value norms", /*reads_queries=*/true,
     &PrepareExpectedAttention},
    {"score:keydiff", "keys turned back first", /*reads_queries=*/false, &PrepareKeyDiff},
    {"score:snapkv", "window of 32 queries per head", /*reads_queries=*/true, &PrepareSnapKv},
    {"score:key_norm", "norms of the keys", /*reads_queries=*/false, &PrepareKeyNorm},
    {"score:default", "what presets ask: expected attention, keydiff, z-scores, maximum",
     /*reads_queries=*/true, &PrepareDefaultScores},
    {"select:topk", "a sixteenth of the tokens", /*reads_queries=*/false, &PrepareTopK},
    {"select:diverse", "one token in 256, lambda 0.5", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDiverse(at, kDiverseStep); }},
    {"select:diverse_many", "one token in 16, lambda 0.5", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDiverse(at, kSelectStep); }},
    {"mean_key", "mean of the keys turned back, which rm subtracts", /*reads_queries=*/false,
     &PrepareMeanKey},
    {"encode:lm4", "keys as lm4+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "lm4+rm", Role::kKey); }},
    {"encode:lm4_values", "values as lm4", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "lm4", Role::kValue); }},
    {"encode:i8t", "keys as i8t+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "i8t+rm", Role::kKey); }},
    {"encode:i8t_values", "values as i8t", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "i8t", Role::kValue); }},
    {"encode:sfv3", "keys as sfv3+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "sfv3+rm", Role::kKey); }},
    {"encode:sfv3_values", "values as sfv3", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "sfv3", Role::kValue); }},
    {"encode:sfv2_values", "values as sfv2", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "sfv2", Role::kValue); }},
    {"encode:i4t", "keys as i4t+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "i4t+rm", Role::kKey); }},
    {"encode:fp8t", "keys as fp8t+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "fp8t+rm", Role::kKey); }},
    {"encode:kch4", "keys as kch4", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareEncode(at, "kch4", Role::kKey); }},
    {"decode:lm4", "keys from lm4+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "lm4+rm", Role::kKey); }},
    {"decode:lm4_values", "values from lm4", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "lm4", Role::kValue); }},
    {"decode:i8t", "keys from i8t+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "i8t+rm", Role::kKey); }},
    {"decode:i8t_values", "values from i8t", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "i8t", Role::kValue); }},
    {"decode:sfv3", "keys from sfv3+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "sfv3+rm", Role::kKey); }},
    {"decode:sfv3_values", "values from sfv3", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "sfv3", Role::kValue); }},
    {"decode:sfv2_values", "values from sfv2", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "sfv2", Role::kValue); }},
    {"decode:i4t", "keys from i4t+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "i4t+rm", Role::kKey); }},
    {"decode:fp8t", "keys from fp8t+rm", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "fp8t+rm", Role::kKey); }},
    {"decode:kch4", "keys from kch4", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareDecode(at, "kch4", Role::kKey); }},
    {"memcpy", "the keys' memory to other memory by memcpy", /*reads_queries=*/false,
     &PrepareMemcpy},
    {"move:copy", "keys and values, half of the tokens into other blocks",
     /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareCopy(at, kMoveStep); }},
    {"move:copy_sparse", "the same, a sixteenth of the tokens", /*reads_queries=*/false,
     [](const Setting& at) -> Prepared { return PrepareCopy(at, kSelectStep); }},
    {"move:in_place", "keys and values, half of the tokens forward in their own blocks",
     /*reads_queries=*/false, &PrepareMoveInPlace},
    {"plan:evict50", "a plan: default scores, angles made anew, topk of half of the tokens",
     /*reads_queries=*/true, &PreparePlan},
    {"plan:cohort", "the same for sequences of 512 tokens, planned together",
     /*reads_queries=*/true, &PrepareCohort},
    {"pack:balanced", "plan and pack to a quarter of the bytes", /*reads_queries=*/true,
     &PreparePack},
    {"unpack:balanced", "back from there", /*reads_queries=*/false, &PrepareUnpack},
    {"move:evict50", "plan, then half of the tokens into other blocks", /*reads_queries=*/true,
     &PrepareEvict},
};

}  // namespace

std::span<const Op> Ops() { return kOps; }

const Op* FindOp(absl::string_view name) {
  for (const Op& op : kOps) {
    if (name == op.name) return &op;
  }
  return nullptr;
}

}  // namespace kvern::bench
