// Reasons and field paths ride in status payloads, so that the layers below gRPC never see its
// types.
#include "kernels/base/error_reason.h"

#include "absl/strings/cord.h"

namespace kvern {
namespace {

constexpr char kReasonUrl[] = "kvern.dev/reason";
constexpr char kFieldUrl[] = "kvern.dev/field";

std::string PayloadOf(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReasonUrl, absl::Cord(reason));
  return status;
}

absl::Status WithField(absl::Status status, absl::string_view field_path) {
  status.SetPayload(kFieldUrl, absl::Cord(field_path));
  return status;
}

std::string ReasonOf(const absl::Status& status) { return PayloadOf(status, kReasonUrl); }
std::string FieldOf(const absl::Status& status) { return PayloadOf(status, kFieldUrl); }

}  // namespace kvern
