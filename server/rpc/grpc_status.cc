// Codes are equal by value; reasons and fields come out of the status payloads.
#include "server/rpc/grpc_status.h"

#include <string>

#include "google/rpc/error_details.pb.h"
#include "kernels/base/error_reason.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {
namespace {

constexpr char kDomain[] = "kvern.dev";
constexpr size_t kMaxMessageBytes = 1024;
constexpr size_t kMaxFieldBytes = 256;
// About the length of one queued call; clients add their own backoff.
constexpr int kRetryNanos = 200'000'000;

constexpr bool SameCode(absl::StatusCode ours, grpc::StatusCode theirs) {
  return static_cast<int>(ours) == static_cast<int>(theirs);
}
static_assert(SameCode(absl::StatusCode::kOk, grpc::OK));
static_assert(SameCode(absl::StatusCode::kCancelled, grpc::CANCELLED));
static_assert(SameCode(absl::StatusCode::kUnknown, grpc::UNKNOWN));
static_assert(SameCode(absl::StatusCode::kInvalidArgument, grpc::INVALID_ARGUMENT));
static_assert(SameCode(absl::StatusCode::kDeadlineExceeded, grpc::DEADLINE_EXCEEDED));
static_assert(SameCode(absl::StatusCode::kNotFound, grpc::NOT_FOUND));
static_assert(SameCode(absl::StatusCode::kAlreadyExists, grpc::ALREADY_EXISTS));
static_assert(SameCode(absl::StatusCode::kPermissionDenied, grpc::PERMISSION_DENIED));
static_assert(SameCode(absl::StatusCode::kResourceExhausted, grpc::RESOURCE_EXHAUSTED));
static_assert(SameCode(absl::StatusCode::kFailedPrecondition, grpc::FAILED_PRECONDITION));
static_assert(SameCode(absl::StatusCode::kAborted, grpc::ABORTED));
static_assert(SameCode(absl::StatusCode::kOutOfRange, grpc::OUT_OF_RANGE));
static_assert(SameCode(absl::StatusCode::kUnimplemented, grpc::UNIMPLEMENTED));
static_assert(SameCode(absl::StatusCode::kInternal, grpc::INTERNAL));
static_assert(SameCode(absl::StatusCode::kUnavailable, grpc::UNAVAILABLE));
static_assert(SameCode(absl::StatusCode::kDataLoss, grpc::DATA_LOSS));
static_assert(SameCode(absl::StatusCode::kUnauthenticated, grpc::UNAUTHENTICATED));

// Whether the same request may pass later: not one that no limit would ever let through.
bool WaitingHelps(const absl::Status& status) {
  if (status.code() != absl::StatusCode::kResourceExhausted || !FieldOf(status).empty()) {
    return false;
  }
  const std::string reason = ReasonOf(status);
  return reason != "RESPONSE_TOO_LARGE" && reason != "QUOTA";
}

std::string Message(const absl::Status& status) {
  return std::string(CutUtf8(status.message(), kMaxMessageBytes));
}

void AddDetails(const absl::Status& status, google::rpc::Status* out) {
  if (const std::string reason = ReasonOf(status); !reason.empty()) {
    google::rpc::ErrorInfo info;
    info.set_reason(reason);
    info.set_domain(kDomain);
    out->add_details()->PackFrom(info);
  }
  if (const std::string field = FieldOf(status); !field.empty()) {
    google::rpc::BadRequest request;
    google::rpc::BadRequest::FieldViolation* violation = request.add_field_violations();
    violation->set_field(std::string(CutUtf8(field, kMaxFieldBytes)));
    violation->set_description(out->message());
    out->add_details()->PackFrom(request);
  }
  if (WaitingHelps(status)) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_nanos(kRetryNanos);
    out->add_details()->PackFrom(retry);
  }
}

}  // namespace

google::rpc::Status ToProto(const absl::Status& status) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(Message(status));
  AddDetails(status, &out);
  return out;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status details = ToProto(status);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), details.message(),
                      details.SerializeAsString());
}

}  // namespace kvern::rpc
