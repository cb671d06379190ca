#include "server/telemetry/levels.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"
#include "server/telemetry/process_stats.h"

namespace kvern::telemetry {
namespace {

TEST(Levels, ShowsWhatTheEngineSamplesAndEveryLimit) {
  LevelsOptions options;
  options.sample = [] {
    engine::EngineGauges now;
    now.queue_depth = 7;
    now.host_pools[0].count = 2;
    now.device_pools[1] = {1, 4096};
    return now;
  };
  options.version = "1.2.3";
  options.commit = "abc";
  const std::string page = prometheus::TextSerializer().Serialize(Levels(options).Collect());
  EXPECT_THAT(page, testing::HasSubstr("kvern_queue_depth 7"));
  EXPECT_THAT(page, testing::HasSubstr("kvern_pools{engine=\"vllm\",kind=\"memfd\"} 2"));
  EXPECT_THAT(page, testing::HasSubstr("kvern_pools{engine=\"sglang\",kind=\"device\"} 1"));
  EXPECT_THAT(
      page, testing::HasSubstr("kvern_pool_mapped_bytes{engine=\"sglang\",kind=\"device\"} 4096"));
  EXPECT_THAT(page, testing::HasSubstr("kvern_build_info{version=\"1.2.3\",commit=\"abc\"} 1"));
  for (const LimitField& field : LimitFields()) {
    EXPECT_THAT(page, testing::HasSubstr(std::string("kvern_limit{limit=\"") + field.flag + "\"}"));
  }
}

TEST(ProcessStats, SeesThisProcess) {
  const ProcessStats stats = ReadProcessStats();
  EXPECT_GT(stats.resident_bytes, 1 << 20);
  EXPECT_GT(stats.virtual_bytes, stats.resident_bytes);
  EXPECT_GE(stats.open_fds, 3);
  EXPECT_GE(stats.max_fds, stats.open_fds);
  EXPECT_GT(stats.start_time_seconds, 1.6e9);
}

}  // namespace
}  // namespace kvern::telemetry
