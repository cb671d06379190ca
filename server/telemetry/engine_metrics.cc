// The families of engine and pipeline.
#include "server/telemetry/engine_metrics.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "server/telemetry/labels.h"

namespace kvern::telemetry {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildHistogram;

std::string Key(const std::string& outcome, const std::string& reason) {
  return absl::StrCat(outcome, "/", reason);
}

prometheus::Histogram::BucketBoundaries RatioBuckets() {
  prometheus::Histogram::BucketBoundaries buckets;
  for (int step = 1; step <= 20; ++step) buckets.push_back(step / 20.0);
  return buckets;
}

std::vector<prometheus::Counter*> PerEngine(prometheus::Family<prometheus::Counter>& family,
                                            const prometheus::Labels& rest) {
  std::vector<prometheus::Counter*> counters;
  for (const std::string& engine : EngineLabels()) {
    prometheus::Labels labels = rest;
    labels["engine"] = engine;
    counters.push_back(&family.Add(labels));
  }
  return counters;
}

const char* DirectionOf(const engine::SequenceResult& result) {
  if (!result.stored_sequence.empty()) return "store";
  if (!result.block_ids.empty()) return "paged";
  return "inline";
}

}  // namespace

const prometheus::Histogram::BucketBoundaries& LatencyBuckets() {
  static const auto* const buckets = new prometheus::Histogram::BucketBoundaries{
      50e-6,   100e-6,  200e-6,   400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3,
      25.6e-3, 51.2e-3, 102.4e-3, 0.205,  0.41,   1,      2.5,    5,      10};
  return *buckets;
}

EngineMetrics::EngineMetrics(prometheus::Registry& registry) {
  AddPolicies(registry);
  AddCounts(registry);
  auto& stages = BuildHistogram()
                     .Name("kvern_stage_duration_seconds")
                     .Help("Time of one pipeline stage of one sequence, by registered name.")
                     .Register(registry);
  for (const StageLabel& label : StageLabels()) {
    stages_[{label.stage, label.name}] =
        &stages.Add({{"stage", label.stage}, {"name", label.name}}, LatencyBuckets());
  }
}

void EngineMetrics::AddPolicies(prometheus::Registry& registry) {
  auto& sequences = BuildCounter()
                        .Name("kvern_sequences_total")
                        .Help("Sequences looked at, by outcome; reason is set for failed ones.")
                        .Register(registry);
  auto& tokens = BuildCounter()
                     .Name("kvern_tokens_total")
                     .Help("Cached tokens of compressed sequences, per layer and head on average.")
                     .Register(registry);
  auto& blocks = BuildCounter()
                     .Name("kvern_blocks_freed_total")
                     .Help("Blocks that compaction gave back to the frontend.")
                     .Register(registry);
  auto& bytes = BuildCounter()
                    .Name("kvern_freed_bytes_total")
                    .Help("Cache bytes before minus after, metadata counted.")
                    .Register(registry);
  auto& keep = BuildHistogram()
                   .Name("kvern_keep_ratio")
                   .Help("Kept / original tokens of compressed sequences.")
                   .Register(registry);
  auto& loss = BuildHistogram()
                   .Name("kvern_estimated_loss_ratio")
                   .Help("Share of observed attention mass that was dropped, where it was sent.")
                   .Register(registry);
  for (const std::string& policy : PolicyLabels()) {
    const prometheus::Labels mine = {{"policy", policy}};
    OfPolicy& of = policies_[policy];
    for (const char* outcome : {"applied", "noop", "skipped"}) {
      of.sequences[Key(outcome, "")] =
          &sequences.Add({{"policy", policy}, {"outcome", outcome}, {"reason", ""}});
    }
    for (const std::string& reason : ReasonLabels()) {
      of.sequences[Key("failed", reason)] =
          &sequences.Add({{"policy", policy}, {"outcome", "failed"}, {"reason", reason}});
    }
    of.tokens_in = &tokens.Add({{"policy", policy}, {"state", "in"}});
    of.tokens_kept = &tokens.Add({{"policy", policy}, {"state", "kept"}});
    of.tokens_dropped = &tokens.Add({{"policy", policy}, {"state", "dropped"}});
    of.blocks_freed = PerEngine(blocks, mine);
    of.bytes_freed = PerEngine(bytes, mine);
    of.keep_ratio = &keep.Add(mine, RatioBuckets());
    of.loss_ratio = &loss.Add(mine, RatioBuckets());
  }
}

void EngineMetrics::AddCounts(prometheus::Registry& registry) {
  auto& moved = BuildCounter()
                    .Name("kvern_moved_bytes_total")
                    .Help("Bytes of kept tokens written, by where they went.")
                    .Register(registry);
  for (const char* direction : {"paged", "store", "inline"}) {
    moved_bytes_[direction] = &moved.Add({{"direction", direction}});
  }
  auto& rejected = BuildCounter()
                       .Name("kvern_rejected_total")
                       .Help("Calls or sequences refused before any work.")
                       .Register(registry);
  for (int reason = 0; reason <= static_cast<int>(engine::Rejection::kDraining); ++reason) {
    rejected_.push_back(&rejected.Add({{"reason", Name(static_cast<engine::Rejection>(reason))}}));
  }
  auto& events = BuildCounter()
                     .Name("kvern_pool_events_total")
                     .Help("Registrations of frontend memory and their ends.")
                     .Register(registry);
  for (int event = 0; event <= static_cast<int>(engine::PoolEvent::kPeerDied); ++event) {
    pool_events_.push_back(&events.Add({{"event", Name(static_cast<engine::PoolEvent>(event))}}));
  }
  replays_ = PerEngine(BuildCounter()
                           .Name("kvern_replays_total")
                           .Help("Calls answered from the answer of an earlier one.")
                           .Register(registry),
                       {});
  epoch_conflicts_ = PerEngine(BuildCounter()
                                   .Name("kvern_epoch_conflicts_total")
                                   .Help("Sequences refused because their epoch was stale.")
                                   .Register(registry),
                               {});
  poisoned_ = PerEngine(BuildCounter()
                            .Name("kvern_poisoned_sequences_total")
                            .Help("Sequences lost to a fault during in-place compaction.")
                            .Register(registry),
                        {});
  store_evictions_ = &BuildCounter()
                          .Name("kvern_store_evictions_total")
                          .Help("Released sequences evicted from the store to make room.")
                          .Register(registry)
                          .Add({});
}

EngineMetrics::OfPolicy& EngineMetrics::Of(const std::string& preset) {
  const auto known = policies_.find(preset);
  return known != policies_.end() ? known->second : policies_.at("custom");
}

void EngineMetrics::OnSequence(const engine::SequenceResult& result, memory::EngineLabel engine) {
  OfPolicy& of = Of(result.preset);
  std::string reason;
  if (result.outcome == engine::Outcome::kFailed) {
    reason = ReasonOf(result.status);
    if (of.sequences.count(Key("failed", reason)) == 0) reason = "other";
  }
  of.sequences.at(Key(Name(result.outcome), reason))->Increment();
  if (result.outcome != engine::Outcome::kApplied) return;
  const double rows = static_cast<double>(std::max<int64_t>(1, result.layers * result.kv_heads));
  const double before = static_cast<double>(result.source_tokens_total) / rows;
  const double kept = static_cast<double>(result.kept_tokens_total) / rows;
  of.tokens_in->Increment(before);
  of.tokens_kept->Increment(kept);
  of.tokens_dropped->Increment(std::max(0.0, before - kept));
  if (before > 0) of.keep_ratio->Observe(kept / before);
  if (result.kept_attention_mass) of.loss_ratio->Observe(1.0 - *result.kept_attention_mass);
  const auto at = static_cast<size_t>(engine);
  of.blocks_freed[at]->Increment(static_cast<double>(result.freed_block_ids.size()));
  of.bytes_freed[at]->Increment(
      static_cast<double>(std::max<int64_t>(0, result.bytes_before - result.bytes_after)));
  moved_bytes_.at(DirectionOf(result))->Increment(static_cast<double>(result.moved_bytes));
}

void EngineMetrics::OnStage(const std::string& stage, const std::string& name, double seconds) {
  auto known = stages_.find({stage, name});
  if (known == stages_.end()) known = stages_.find({stage, ""});
  if (known != stages_.end()) known->second->Observe(seconds);
}

void EngineMetrics::OnRejected(engine::Rejection reason) {
  rejected_[static_cast<size_t>(reason)]->Increment();
}
void EngineMetrics::OnReplay(memory::EngineLabel engine) {
  replays_[static_cast<size_t>(engine)]->Increment();
}
void EngineMetrics::OnEpochConflict(memory::EngineLabel engine) {
  epoch_conflicts_[static_cast<size_t>(engine)]->Increment();
}
void EngineMetrics::OnPoisoned(memory::EngineLabel engine) {
  poisoned_[static_cast<size_t>(engine)]->Increment();
}
void EngineMetrics::OnPoolEvent(engine::PoolEvent event) {
  pool_events_[static_cast<size_t>(event)]->Increment();
}
void EngineMetrics::OnStoreEviction() { store_evictions_->Increment(); }

}  // namespace kvern::telemetry
