#include "server/rpc/response_limit.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "kvern/v1/store.pb.h"

namespace kvern::rpc {
namespace {

TEST(ResponseLimit, RefusesAHeaderOfOneByteTooMany) {
  v1::FetchSequenceResponse response;
  response.mutable_header()->set_packed_table(std::string(1000, 't'));
  Limits limits;
  limits.max_response_bytes = static_cast<int64_t>(response.ByteSizeLong());
  EXPECT_TRUE(CheckSendable(response, limits).ok());
  --limits.max_response_bytes;
  const absl::Status refused = CheckSendable(response, limits);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "RESPONSE_TOO_LARGE");
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("--max-response-bytes"));
}

}  // namespace
}  // namespace kvern::rpc
