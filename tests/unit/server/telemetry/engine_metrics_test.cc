// Events become counts, and every series exists before the first event.
#include "server/telemetry/engine_metrics.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "prometheus/text_serializer.h"

namespace kvern::telemetry {
namespace {

std::string Page(const prometheus::Registry& registry) {
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

// Names and labels without values.
std::set<std::string> SeriesOf(const std::string& page) {
  std::set<std::string> series;
  std::istringstream lines(page);
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line[0] != '#') series.insert(line.substr(0, line.rfind(' ')));
  }
  return series;
}

engine::SequenceResult AppliedResult() {
  engine::SequenceResult result;
  result.outcome = engine::Outcome::kApplied;
  result.preset = "evict50";
  result.layers = 2;
  result.kv_heads = 4;
  result.source_tokens_total = 8 * 100;
  result.kept_tokens_total = 8 * 50;
  result.block_ids = {1, 2};
  result.freed_block_ids = {3, 4, 5};
  result.bytes_before = 1000;
  result.bytes_after = 400;
  result.moved_bytes = 400;
  return result;
}

TEST(EngineMetrics, CountsAnAppliedSequence) {
  prometheus::Registry registry;
  EngineMetrics metrics(registry);
  metrics.OnSequence(AppliedResult(), memory::EngineLabel::kVllm);
  const std::string page = Page(registry);
  EXPECT_THAT(page, testing::HasSubstr("kvern_sequences_total{outcome=\"applied\","
                                       "policy=\"evict50\",reason=\"\"} 1"));
  EXPECT_THAT(page, testing::HasSubstr("kvern_tokens_total{policy=\"evict50\",state=\"kept\"} 50"));
  EXPECT_THAT(page,
              testing::HasSubstr("kvern_blocks_freed_total{engine=\"vllm\",policy=\"evict50\"} 3"));
  EXPECT_THAT(
      page, testing::HasSubstr("kvern_freed_bytes_total{engine=\"vllm\",policy=\"evict50\"} 600"));
  EXPECT_THAT(page, testing::HasSubstr("kvern_moved_bytes_total{direction=\"paged\"} 400"));
}

TEST(EngineMetrics, AddsNoSeriesWhenEventsArrive) {
  prometheus::Registry registry;
  EngineMetrics metrics(registry);
  const std::set<std::string> before = SeriesOf(Page(registry));
  engine::SequenceResult result = AppliedResult();
  metrics.OnSequence(result, memory::EngineLabel::kOther);
  result.preset = "a name nobody registered";
  result.outcome = engine::Outcome::kFailed;
  result.status = WithReason(absl::InternalError("x"), "A_REASON_NOBODY_LISTED");
  metrics.OnSequence(result, memory::EngineLabel::kOther);
  metrics.OnStage("score", "a stage nobody registered", 0.1);
  metrics.OnStage("no such stage", "", 0.1);
  metrics.OnRejected(engine::Rejection::kDraining);
  metrics.OnPoolEvent(engine::PoolEvent::kPeerDied);
  EXPECT_EQ(before, SeriesOf(Page(registry)));
  EXPECT_THAT(Page(registry), testing::HasSubstr("kvern_sequences_total{outcome=\"failed\","
                                                 "policy=\"custom\",reason=\"other\"} 1"));
}

TEST(EngineMetrics, HasASeriesForEveryRegisteredScorer) {
  prometheus::Registry registry;
  EngineMetrics metrics(registry);
  metrics.OnStage("score", "keydiff", 0.001);
  EXPECT_THAT(
      Page(registry),
      testing::HasSubstr("kvern_stage_duration_seconds_count{name=\"keydiff\",stage=\"score\"} 1"));
}

}  // namespace
}  // namespace kvern::telemetry
