// Typed results turn into fields and little-endian bytes; nothing is decided here.
#include "server/rpc/compress_to_proto.h"

#include <algorithm>
#include <bit>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "server/rpc/grpc_status.h"
#include "server/rpc/name_from_proto.h"

namespace kvern::rpc {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire's bytes are little-endian");

template <class T>
std::string AsBytes(const std::vector<T>& elements) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(T));
}

v1::Outcome OutcomeToProto(engine::Outcome outcome) {
  switch (outcome) {
    case engine::Outcome::kApplied:
      return v1::OUTCOME_APPLIED;
    case engine::Outcome::kNoop:
      return v1::OUTCOME_NOOP;
    case engine::Outcome::kSkipped:
      return v1::OUTCOME_SKIPPED;
    case engine::Outcome::kFailed:
      break;
  }
  return v1::OUTCOME_FAILED;
}

void SetQuality(const engine::SequenceResult& result, v1::Quality* quality) {
  if (result.kept_attention_mass.has_value()) {
    quality->set_kept_attention_mass(*result.kept_attention_mass);
  }
  if (result.k_error.has_value()) quality->set_k_error(*result.k_error);
  if (result.v_error.has_value()) quality->set_v_error(*result.v_error);
  quality->set_nan_scores(result.nan_scores);
  quality->set_nonfinite_values(result.nonfinite_values);
}

void SetTimings(const engine::SequenceResult& result, v1::Timings* timings) {
  timings->set_queue_us(result.queue_us);
  timings->set_plan_us(result.micros.plan);
  timings->set_score_us(result.micros.score);
  timings->set_select_us(result.micros.select);
  timings->set_encode_us(result.micros.encode);
  timings->set_move_us(result.micros.move);
}

// Whether both were told the same policy.
bool SameResolved(const engine::SequenceResult& a, const engine::SequenceResult& b) {
  const auto words = [](const engine::SequenceResult& of) {
    return std::tie(of.preset, of.budgeter, of.scorer, of.selector, of.k_codec, of.v_codec,
                    of.fallback, of.budget_grew);
  };
  return words(a) == words(b);
}

void SetResolved(const engine::SequenceResult& result, v1::ResolvedPolicy* resolved) {
  resolved->set_preset(result.preset);
  resolved->set_budgeter(result.budgeter);
  resolved->set_scorer(result.scorer);
  resolved->set_selector(result.selector);
  resolved->set_k_codec(result.k_codec);
  resolved->set_v_codec(result.v_codec);
  resolved->set_fallback(result.fallback);
  resolved->set_budget_grew(result.budget_grew);
}

void SetTensor(const engine::SequenceResult& result, const std::vector<std::byte>& bytes,
               v1::Tensor* tensor) {
  tensor->set_dtype(ToProto(result.dtype));
  for (const int64_t extent : {result.layers, result.kv_heads, result.max_kept, result.head_dim}) {
    tensor->add_shape(extent);
  }
  tensor->set_data(AsBytes(bytes));
}

void SetBytes(const engine::SequenceResult& result, v1::SequenceResult* out) {
  if (!result.k.empty()) SetTensor(result, result.k, out->mutable_k());
  if (!result.v.empty()) SetTensor(result, result.v, out->mutable_v());
  if (!result.packed.has_value()) return;
  v1::PackedKv* packed = out->mutable_packed();
  packed->set_table(AsBytes(result.packed->table));
  packed->set_mean_key(AsBytes(result.packed->mean_key));
  packed->set_dtype(ToProto(result.packed->dtype));
  packed->set_blocks(AsBytes(result.packed->blocks));
}

void SequenceToProto(const engine::SequenceResult& result, v1::SequenceResult* out) {
  out->set_sequence_id(result.sequence_id);
  out->set_outcome(OutcomeToProto(result.outcome));
  out->set_epoch(result.epoch);
  out->set_num_logical_tokens(result.logical_tokens);
  out->set_num_physical_tokens(result.physical_tokens);
  out->set_num_dropped_tokens(result.dropped_tokens);
  out->mutable_block_ids()->Add(result.block_ids.begin(), result.block_ids.end());
  out->mutable_freed_block_ids()->Add(result.freed_block_ids.begin(), result.freed_block_ids.end());
  out->set_next_slot(result.next_slot);
  out->mutable_lengths()->Add(result.lengths.begin(), result.lengths.end());
  out->set_shape_class(ToProto(result.shape_class));
  out->set_kept(AsBytes(result.kept));
  out->set_positions(AsBytes(result.positions));
  out->mutable_kept_counts()->Add(result.kept_counts.begin(), result.kept_counts.end());
  out->set_scores(AsBytes(result.scores));
  out->set_bytes_before(result.bytes_before);
  out->set_bytes_after(result.bytes_after);
  out->set_stored_sequence(MakeName(result.stored_sequence, Collection::kSequences));
  SetQuality(result, out->mutable_quality());
  SetTimings(result, out->mutable_timings());
  out->mutable_warnings()->Assign(result.warnings.begin(), result.warnings.end());
  out->set_publishable_prefix_tokens(result.publishable_prefix_tokens);
  SetBytes(result, out);
}

void Count(engine::Outcome outcome, engine::CompressSummary* summary) {
  switch (outcome) {
    case engine::Outcome::kApplied:
      ++summary->applied;
      return;
    case engine::Outcome::kNoop:
      ++summary->noop;
      return;
    case engine::Outcome::kSkipped:
      ++summary->skipped;
      return;
    case engine::Outcome::kFailed:
      ++summary->failed;
      return;
  }
}

}  // namespace

void ToProto(const engine::CompressResult& result, v1::CompressCacheResponse* response) {
  response->set_replayed(result.replayed);
  const engine::SequenceResult* said = nullptr;
  for (const engine::SequenceResult& sequence : result.results) {
    v1::SequenceResult* out = response->add_results();
    SequenceToProto(sequence, out);
    if (said == nullptr || !SameResolved(sequence, *said)) {
      SetResolved(sequence, out->mutable_resolved());
      said = &sequence;
    }
    if (!sequence.status.ok()) *out->mutable_status() = ToProto(sequence.status);
  }
}

v1::ShapeClass ToProto(pipeline::ShapeClass shape_class) {
  switch (shape_class) {
    case pipeline::ShapeClass::kS0:
      return v1::SHAPE_CLASS_S0;
    case pipeline::ShapeClass::kS1:
      return v1::SHAPE_CLASS_S1;
    case pipeline::ShapeClass::kS2:
      return v1::SHAPE_CLASS_S2;
    case pipeline::ShapeClass::kS3:
      return v1::SHAPE_CLASS_S3;
    case pipeline::ShapeClass::kS4:
      break;
  }
  return v1::SHAPE_CLASS_S4;
}

v1::DType ToProto(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return v1::DTYPE_BF16;
    case DType::kF16:
      return v1::DTYPE_F16;
    case DType::kF32:
      break;
  }
  return v1::DTYPE_F32;
}

engine::CompressSummary Summarize(const engine::CompressResult& result) {
  engine::CompressSummary summary;
  summary.sequences = static_cast<int64_t>(result.results.size());
  summary.replayed = result.replayed;
  if (!result.results.empty()) summary.preset = result.results.front().preset;
  for (const engine::SequenceResult& sequence : result.results) {
    Count(sequence.outcome, &summary);
    summary.source_tokens += sequence.source_tokens_total;
    summary.kept_tokens += sequence.kept_tokens_total;
    summary.bytes_before += sequence.bytes_before;
    summary.bytes_after += sequence.bytes_after;
    summary.queue_us = std::max(summary.queue_us, sequence.queue_us);
    summary.micros.plan += sequence.micros.plan;
    summary.micros.score += sequence.micros.score;
    summary.micros.select += sequence.micros.select;
    summary.micros.encode += sequence.micros.encode;
    summary.micros.move += sequence.micros.move;
  }
  return summary;
}

}  // namespace kvern::rpc
