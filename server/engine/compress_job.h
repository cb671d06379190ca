// One CompressCache call after the edge, and its answer. Everything is owned: the wire message may
// be gone by the time a worker looks at it.
#ifndef KVERN_SERVER_ENGINE_COMPRESS_JOB_H_
#define KVERN_SERVER_ENGINE_COMPRESS_JOB_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/base/reuse.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/policy.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::engine {

struct ApplyJob;    // chosen_plan.h
struct ChosenPlan;  // chosen_plan.h

struct PagedSource {
  std::string pool;  // id, without prefix
  std::vector<uint32_t> block_ids;
  int64_t num_tokens = 0;
  std::vector<int32_t> lengths;  // [layers] or [layers * kv_heads], or empty
  std::vector<uint32_t> destination_block_ids;
};
struct StoredSource {
  std::string sequence;  // id
};
// Bytes stay where they arrived; `owner` keeps them alive.
struct InlineSource {
  std::vector<int32_t> layer_indices;  // empty: all
  DType dtype = DType::kBF16;
  int64_t layers = 0, kv_heads = 0, tokens = 0, head_dim = 0;
  const std::byte* k = nullptr;
  const std::byte* v = nullptr;
  std::shared_ptr<const void> owner;
};

struct SequenceJob {
  std::string sequence_id;
  uint64_t epoch = 0;
  int64_t logical_tokens = 0;  // 0: physical
  std::variant<PagedSource, StoredSource, InlineSource> source;
  std::vector<int32_t> positions;  // empty: remembered, or 0..tokens-1
  bool per_head_positions = false;
  std::vector<std::pair<int64_t, int64_t>> protected_ranges;
  int64_t readonly_prefix_tokens = 0;
  pipeline::SideTensors side;
  int64_t side_layers = 0;                 // layers of the side tensors as sent; 0: none sent
  std::optional<pipeline::Policy> policy;  // replaces the call's
  // What an earlier call chose; set: it is moved, and no stage runs.
  std::shared_ptr<const ChosenPlan> chosen;
  // INVALID_ARGUMENT found at the edge for this sequence only: reported as its outcome.
  absl::Status edge_status;
};

// What the answer shall carry (contract: response mask).
struct ResponseFields {
  bool by_default = true;  // mask was empty: placement decides
  bool kept = false, positions = false, scores = false, k = false, v = false, packed = false;
};

struct CompressJob {
  std::string request_id;
  std::string peer;           // for replay: "unix" for all of a Unix socket, else the address
  uint64_t request_hash = 0;  // of the request without tensor bytes
  std::string model;          // id
  pipeline::Policy policy;
  bool validate_only = false;
  bool keeps_plans = false;               // results carry what they chose
  std::shared_ptr<const ApplyJob> apply;  // set: the plan's job is made when this one runs
  ResponseFields fields;
  std::vector<SequenceJob> sequences;
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<std::atomic<bool>> cancelled;  // never null
  int64_t payload_bytes = 0;                     // counted against queued_bytes
};

enum class Outcome : uint8_t { kApplied, kNoop, kSkipped, kFailed };

struct SequenceResult {
  std::string sequence_id;
  Outcome outcome = Outcome::kSkipped;
  absl::Status status;  // FAILED, SKIPPED
  uint64_t epoch = 0;
  int64_t logical_tokens = 0;
  int64_t physical_tokens = 0;
  int64_t dropped_tokens = 0;  // logical ones before the call - physical
  ScratchVector<uint32_t> block_ids;
  ScratchVector<uint32_t> freed_block_ids;
  uint64_t next_slot = 0;
  ScratchVector<int32_t> lengths;  // S3: [layers]; S4: [layers * kv_heads]
  pipeline::ShapeClass shape_class = pipeline::ShapeClass::kS0;
  int64_t layers = 0, kv_heads = 0, tokens = 0, head_dim = 0, max_kept = 0;
  ScratchVector<int32_t> kept;         // [layers, kv_heads, max_kept], -1 fills; if asked
  ScratchVector<int32_t> positions;    // same; if asked
  ScratchVector<int32_t> kept_counts;  // [layers, kv_heads]
  std::vector<float> scores;           // [layers, kv_heads, tokens]; if asked
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  std::string stored_sequence;
  std::optional<double> kept_attention_mass, k_error, v_error;
  int64_t nan_scores = 0, nonfinite_values = 0;
  int64_t queue_us = 0;
  pipeline::StageMicros micros;
  std::string preset, budgeter, scorer, selector, k_codec, v_codec, fallback;
  bool budget_grew = false;
  std::vector<std::string> warnings;
  int64_t publishable_prefix_tokens = 0;
  DType dtype = DType::kBF16;
  std::vector<std::byte> k, v;               // RETURN, raw16
  std::optional<pipeline::PackedKv> packed;  // RETURN, packed
  std::shared_ptr<const ChosenPlan> chosen;  // of a job that keeps plans
  // Facts for telemetry only.
  int64_t kept_tokens_total = 0, source_tokens_total = 0, moved_bytes = 0;
};

struct CompressResult {
  ScratchVector<SequenceResult> results;
  bool replayed = false;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_COMPRESS_JOB_H_
