// Details of the wire survive into statuses, and broken ones do no harm.
#include "client/cpp/status_details.h"

#include "client/cpp/client.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::client {
namespace {

google::rpc::Status FullStatus() {
  google::rpc::Status status;
  status.set_code(8);
  status.set_message("queue: got 65 calls, want at most 64");
  google::rpc::ErrorInfo info;
  info.set_reason("QUEUE_FULL");
  status.add_details()->PackFrom(info);
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field("sequences[0].k");
  status.add_details()->PackFrom(bad);
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  status.add_details()->PackFrom(retry);
  return status;
}

TEST(StatusDetails, ReadsReasonFieldAndDelay) {
  const google::rpc::Status details = FullStatus();
  const absl::Status status = FromGrpc(grpc::Status(
      grpc::StatusCode::RESOURCE_EXHAUSTED, details.message(), details.SerializeAsString()));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), details.message());
  EXPECT_EQ(ReasonOf(status), "QUEUE_FULL");
  EXPECT_EQ(FieldOf(status), "sequences[0].k");
  EXPECT_EQ(RetryDelayOf(status), absl::Milliseconds(1500));
}

TEST(StatusDetails, KeepsCodeAndMessageWhenDetailsDoNotParse) {
  const absl::Status status =
      FromGrpc(grpc::Status(grpc::StatusCode::ABORTED, "stale", "\xff\xff no message"));
  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_EQ(status.message(), "stale");
  EXPECT_TRUE(ReasonOf(status).empty());
  EXPECT_FALSE(RetryDelayOf(status).has_value());
}

TEST(StatusDetails, OkStaysOk) {
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  EXPECT_TRUE(FromRpcStatus(google::rpc::Status()).ok());
}

TEST(SequenceStatus, PassesAppliedAndNoopOnly) {
  v1::SequenceResult result;
  result.set_outcome(v1::OUTCOME_APPLIED);
  EXPECT_TRUE(SequenceStatus(result).ok());
  result.set_outcome(v1::OUTCOME_NOOP);
  EXPECT_TRUE(SequenceStatus(result).ok());
  result.set_outcome(v1::OUTCOME_FAILED);
  EXPECT_TRUE(absl::IsInternal(SequenceStatus(result)));  // a fault without a reason is one too
  *result.mutable_status() = FullStatus();
  EXPECT_EQ(ReasonOf(SequenceStatus(result)), "QUEUE_FULL");
}

}  // namespace
}  // namespace kvern::client
