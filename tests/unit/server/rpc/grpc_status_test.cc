// Statuses on the wire: code, cut message, and details that clients can act on.
#include "server/rpc/grpc_status.h"

#include <string>

#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::rpc {
namespace {

template <class Detail>
bool Find(const google::rpc::Status& status, Detail* detail) {
  for (const auto& any : status.details()) {
    if (any.UnpackTo(detail)) return true;
  }
  return false;
}

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  return details;
}

TEST(GrpcStatus, IsPlainWhenAllIsWell) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).error_details().empty());
}

TEST(GrpcStatus, CarriesTheReasonInErrorInfo) {
  const grpc::Status status =
      ToGrpc(WithReason(absl::AbortedError("epoch: got 1, want 2"), "EPOCH_MISMATCH"));
  EXPECT_EQ(status.error_code(), grpc::ABORTED);
  EXPECT_EQ(status.error_message(), "epoch: got 1, want 2");
  const google::rpc::Status details = Details(status);
  EXPECT_EQ(details.code(), grpc::ABORTED);
  EXPECT_EQ(details.message(), status.error_message());
  google::rpc::ErrorInfo info;
  ASSERT_TRUE(Find(details, &info));
  EXPECT_EQ(info.reason(), "EPOCH_MISMATCH");
  EXPECT_EQ(info.domain(), "kvern.dev");
  google::rpc::RetryInfo retry;
  EXPECT_FALSE(Find(details, &retry));
}

TEST(GrpcStatus, CarriesTheFieldInBadRequest) {
  const google::rpc::Status details = Details(
      ToGrpc(WithField(absl::InvalidArgumentError("got 0, want 1"), "sequences[2].paged.pool")));
  google::rpc::BadRequest request;
  ASSERT_TRUE(Find(details, &request));
  ASSERT_EQ(request.field_violations_size(), 1);
  EXPECT_EQ(request.field_violations(0).field(), "sequences[2].paged.pool");
  EXPECT_EQ(request.field_violations(0).description(), "got 0, want 1");
}

TEST(GrpcStatus, TellsWhenToRetryAFullServer) {
  google::rpc::RetryInfo retry;
  ASSERT_TRUE(Find(Details(ToGrpc(absl::ResourceExhaustedError("queue"))), &retry));
  EXPECT_GT(retry.retry_delay().nanos(), 0);
}

TEST(GrpcStatus, PromisesNothingToWhatNeverFits) {
  const absl::Status full = absl::ResourceExhaustedError("got 2, want at most 1");
  google::rpc::RetryInfo retry;
  EXPECT_TRUE(Find(Details(ToGrpc(WithReason(full, "QUEUE_FULL"))), &retry));
  EXPECT_FALSE(Find(Details(ToGrpc(WithReason(full, "RESPONSE_TOO_LARGE"))), &retry));
  EXPECT_FALSE(Find(Details(ToGrpc(WithReason(full, "QUOTA"))), &retry));
  EXPECT_FALSE(Find(Details(ToGrpc(WithField(full, "data"))), &retry));
}

TEST(GrpcStatus, CutsTheMessageAt1KiBBetweenCharacters) {
  std::string message(1023, 'a');
  message += "\xC3\xA9";
  EXPECT_EQ(ToGrpc(absl::InternalError(message)).error_message(), std::string(1023, 'a'));
  EXPECT_EQ(ToGrpc(absl::InternalError(std::string(5000, 'a'))).error_message().size(), 1024u);
}

}  // namespace
}  // namespace kvern::rpc
