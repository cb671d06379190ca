// Every figure of a result is measured from what happened; none is copied from what was asked.
#include "server/engine/report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace kvern::engine {
namespace {

using pipeline::ShapeClass;

// Share of the observed attention mass that the kept tokens hold. None was observed of tokens that
// were appended to a plan.
std::optional<double> KeptMass(const BoundSource& source, const KeepList& keep) {
  const std::vector<float>& mass = source.input.side->attention_mass;
  if (mass.empty()) return std::nullopt;
  const SlotShape shape = source.Shape();
  const auto counted = [](float value) { return std::isfinite(value) ? double{value} : 0.0; };
  const int64_t observed = static_cast<int64_t>(mass.size()) / shape.Rows();
  const int64_t appended = shape.tokens - observed;
  double total = 0;
  double kept = 0;
  for (int64_t row = 0; row < shape.Rows(); ++row) {
    const float* of_row = mass.data() + row * observed;
    const int64_t length = shape.Length(row) - appended;
    for (int64_t token = 0; token < length; ++token) total += counted(of_row[token]);
    const int64_t layer = row / shape.kv_heads;
    const int64_t head = row % shape.kv_heads;
    const int32_t* tokens = keep.Row(layer, head);
    for (int64_t slot = 0; slot < keep.Count(layer, head); ++slot) {
      if (tokens[slot] < length) kept += counted(of_row[tokens[slot]]);
    }
  }
  if (!(total > 0)) return std::nullopt;
  return kept / total;
}

std::optional<double> RelativeError(const EncodeCounts& counts) {
  if (!(counts.squared_norm > 0)) return std::nullopt;
  return counts.squared_error / counts.squared_norm;
}

// One length per layer (S3) or per head (S4).
ScratchVector<int32_t> LengthsOf(const pipeline::KeepPlan& plan, int64_t kv_heads) {
  const ScratchVector<int32_t>& counts = plan.counts.counts;
  if (plan.shape_class == ShapeClass::kS4) return counts;
  if (plan.shape_class != ShapeClass::kS3) return {};
  ScratchVector<int32_t> lengths;
  for (size_t row = 0; row < counts.size(); row += kv_heads) lengths.push_back(counts[row]);
  return lengths;
}

// `snapkv` of `snapkv:window=32`; `blend` of `max(...)`, as a scorer's own text has no brackets.
std::string StageName(const std::string& text) {
  if (absl::StrContains(text, "(")) return "blend";
  return std::string(text.substr(0, text.find(':')));
}

// `lm4` of `H+lm4+rm`: the codec among its flags.
std::string CodecName(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '+');
  for (const std::string& part : parts) {
    for (const pipeline::CodecEntry& entry : pipeline::Codecs()) {
      if (part == entry.info.name) return part;
    }
  }
  return "";
}

}  // namespace

void DescribeSource(const BoundSource& source, SequenceResult* result) {
  const SlotShape shape = source.Shape();
  result->layers = shape.layers;
  result->kv_heads = shape.kv_heads;
  result->tokens = shape.tokens;
  result->head_dim = source.input.model->head_dim;
  result->dtype = source.dtype;
  result->logical_tokens = source.input.logical_tokens;
  result->physical_tokens = shape.tokens;
  result->dropped_tokens = result->logical_tokens - shape.tokens;
  result->source_tokens_total = source.TotalTokens();
  result->bytes_before = pipeline::BytesBefore(source.input);
  result->bytes_after = result->bytes_before;
}

void DescribePolicy(const KnownPolicy& known, SequenceResult* result) {
  const pipeline::ResolvedPolicy& policy = known.policy;
  result->preset = policy.preset;
  result->budgeter = known.budgeter;
  result->scorer = known.scorer;
  result->selector = known.selector;
  result->k_codec = known.k_codec;
  result->v_codec = known.v_codec;
  result->fallback = policy.fallback;
  result->warnings.insert(result->warnings.end(), policy.warnings.begin(), policy.warnings.end());
}

void DescribeObserved(const pipeline::Calibrations& calibrations,
                      const pipeline::ResolvedPolicy& policy, SequenceResult* result) {
  const int observed = (calibrations.observed_centres ? pipeline::kNeedsCentres : 0) |
                       (calibrations.observed_moments ? pipeline::kNeedsMoments : 0);
  const bool used =
      std::any_of(policy.scorers.begin(), policy.scorers.end(),
                  [observed](const auto& scorer) { return (scorer->Inputs() & observed) != 0; });
  if (!used) return;
  result->warnings.push_back(absl::StrCat("calibration: the model has no file of the kind; took ",
                                          "the queries observed at ", calibrations.observed_tokens,
                                          " positions"));
}

int64_t NextPosition(const BoundSource& source, const pipeline::ResolvedPolicy& policy,
                     const pipeline::KeepPlan& plan) {
  const bool renumbers = policy.positions == pipeline::PositionMode::kRenumber;
  return renumbers ? plan.max_kept : source.input.logical_tokens;
}

void DescribePlan(const BoundSource& source, const pipeline::ResolvedPolicy& policy,
                  const pipeline::KeepPlan& plan, SequenceResult* result) {
  const ScratchVector<int32_t>& counts = plan.counts.counts;
  result->max_kept = plan.max_kept;
  result->physical_tokens = plan.max_kept;
  result->dropped_tokens = source.input.logical_tokens - plan.max_kept;
  result->logical_tokens = NextPosition(source, policy, plan);
  result->shape_class = plan.shape_class;
  result->kept_counts = counts;
  result->lengths = LengthsOf(plan, source.input.KvHeads());
  result->kept_tokens_total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  result->budget_grew = plan.counts.budget_grew;
  result->nan_scores = plan.nan_scores;
  if (plan.nan_scores > 0) {
    result->warnings.push_back(
        absl::StrCat("scores: got ", plan.nan_scores, " that are NaN; those tokens rank last"));
  }
  result->warnings.insert(result->warnings.end(), plan.counts.warnings.begin(),
                          plan.counts.warnings.end());
  result->kept_attention_mass = KeptMass(source, plan.keep);
  result->bytes_after = policy.codecs.Packs() ? pipeline::PackedBytes(source.input, policy, counts)
                                              : result->kept_tokens_total * source.TokenBytes();
}

void DescribePacked(SequenceResult* result) {
  if (!result->packed) return;
  result->bytes_after = result->moved_bytes;
  result->k_error = RelativeError(result->packed->k_counts);
  result->v_error = RelativeError(result->packed->v_counts);
  result->nonfinite_values =
      result->packed->k_counts.nonfinite + result->packed->v_counts.nonfinite;
}

SequenceResult Refused(const SequenceResult& result) {
  SequenceResult refused;
  refused.sequence_id = result.sequence_id;
  refused.epoch = result.epoch;
  refused.logical_tokens = result.physical_tokens + result.dropped_tokens;  // as before the call
  refused.physical_tokens = refused.tokens = result.tokens;
  refused.dropped_tokens = refused.logical_tokens - result.tokens;
  refused.layers = result.layers;
  refused.kv_heads = result.kv_heads;
  refused.head_dim = result.head_dim;
  refused.dtype = result.dtype;
  refused.bytes_before = refused.bytes_after = result.bytes_before;
  refused.source_tokens_total = refused.kept_tokens_total = result.source_tokens_total;
  refused.preset = result.preset;
  refused.budgeter = result.budgeter;
  refused.scorer = result.scorer;
  refused.selector = result.selector;
  refused.k_codec = result.k_codec;
  refused.v_codec = result.v_codec;
  refused.fallback = result.fallback;
  refused.queue_us = result.queue_us;
  refused.micros = result.micros;
  return refused;
}

ScratchVector<int32_t> PaddedKeep(const pipeline::KeepPlan& plan) {
  const KeepList& keep = plan.keep;
  ScratchVector<int32_t> padded(keep.layers * keep.kv_heads * plan.max_kept, -1);
  for (int64_t layer = 0; layer < keep.layers; ++layer) {
    for (int64_t head = 0; head < keep.kv_heads; ++head) {
      const int32_t* row = keep.Row(layer, head);
      std::copy(row, row + keep.Count(layer, head),
                padded.begin() + (layer * keep.kv_heads + head) * plan.max_kept);
    }
  }
  return padded;
}

void NotifyStages(const SequenceResult& result, EngineEvents* events) {
  if (result.outcome != Outcome::kApplied) return;
  const auto notify = [&](const char* stage, const std::string& name, int64_t micros) {
    events->OnStage(stage, name, static_cast<double>(micros) * 1e-6);
  };
  notify("queue", "", result.queue_us);
  notify("plan", StageName(result.budgeter), result.micros.plan);
  if (!result.scorer.empty()) notify("score", StageName(result.scorer), result.micros.score);
  notify("select", StageName(result.selector), result.micros.select);
  if (result.micros.encode > 0) notify("encode", CodecName(result.k_codec), result.micros.encode);
  if (result.micros.move > 0) notify("move", "", result.micros.move);
}

}  // namespace kvern::engine
