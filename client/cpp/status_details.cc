// Reads google.rpc details (ErrorInfo, BadRequest, RetryInfo) into the payloads of an absl::Status.
#include "client/cpp/status_details.h"

#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "google/rpc/error_details.pb.h"
#include "kernels/base/error_reason.h"

namespace kvern::client {
namespace {

constexpr char kRetryUrl[] = "kvern.dev/retry_delay";

static_assert(static_cast<int>(absl::StatusCode::kInvalidArgument) ==
                  static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT) &&
              static_cast<int>(absl::StatusCode::kDataLoss) ==
                  static_cast<int>(grpc::StatusCode::DATA_LOSS) &&
              static_cast<int>(absl::StatusCode::kUnauthenticated) ==
                  static_cast<int>(grpc::StatusCode::UNAUTHENTICATED));

void AttachDetail(const google::protobuf::Any& detail, absl::Status* status) {
  if (google::rpc::ErrorInfo info; detail.UnpackTo(&info)) {
    *status = WithReason(std::move(*status), info.reason());
    return;
  }
  if (google::rpc::BadRequest bad; detail.UnpackTo(&bad)) {
    if (bad.field_violations_size() > 0) {
      *status = WithField(std::move(*status), bad.field_violations(0).field());
    }
    return;
  }
  if (google::rpc::RetryInfo retry; detail.UnpackTo(&retry)) {
    const absl::Duration delay = absl::Seconds(retry.retry_delay().seconds()) +
                                 absl::Nanoseconds(retry.retry_delay().nanos());
    status->SetPayload(kRetryUrl, absl::Cord(absl::FormatDuration(delay)));
  }
}

}  // namespace

absl::Status FromRpcStatus(const google::rpc::Status& status) {
  absl::Status result(static_cast<absl::StatusCode>(status.code()), status.message());
  if (result.ok()) return result;
  for (const google::protobuf::Any& detail : status.details()) AttachDetail(detail, &result);
  return result;
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) details.Clear();
  details.set_code(status.error_code());
  details.set_message(status.error_message());
  return FromRpcStatus(details);
}

std::optional<absl::Duration> RetryDelayOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryUrl);
  absl::Duration delay;
  if (!payload.has_value() || !absl::ParseDuration(std::string(*payload), &delay)) {
    return std::nullopt;
  }
  return delay;
}

}  // namespace kvern::client
