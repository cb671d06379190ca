#include "server/telemetry/rpc_metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "prometheus/text_serializer.h"

namespace kvern::telemetry {
namespace {

std::string Page(const prometheus::Registry& registry) {
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

TEST(RpcMetrics, CountsCodesAndReturnsInFlightToZero) {
  prometheus::Registry registry;
  RpcMetrics metrics(registry);
  metrics.OnStart(engine::Rpc::kCompressCache);
  EXPECT_THAT(Page(registry), testing::HasSubstr("kvern_rpc_in_flight{rpc=\"CompressCache\"} 1"));
  engine::RpcEnd end;
  end.code = absl::StatusCode::kAborted;
  metrics.OnEnd(end);
  const std::string page = Page(registry);
  EXPECT_THAT(page, testing::HasSubstr("kvern_rpc_in_flight{rpc=\"CompressCache\"} 0"));
  EXPECT_THAT(page, testing::HasSubstr(
                        "kvern_rpc_requests_total{code=\"aborted\",rpc=\"CompressCache\"} 1"));
}

TEST(RpcMetrics, CountsACodeThatTheRpcCannotAnswerAsUnknown) {
  prometheus::Registry registry;
  RpcMetrics metrics(registry);
  engine::RpcEnd end;
  end.rpc = engine::Rpc::kListStages;
  end.code = absl::StatusCode::kDataLoss;
  metrics.OnStart(end.rpc);
  metrics.OnEnd(end);
  EXPECT_THAT(
      Page(registry),
      testing::HasSubstr("kvern_rpc_requests_total{code=\"unknown\",rpc=\"ListStages\"} 1"));
}

}  // namespace
}  // namespace kvern::telemetry
