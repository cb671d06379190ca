// gRPC's own refusal comes after the call was answered, as a write that failed.
#include "server/rpc/response_limit.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"

namespace kvern::rpc {

absl::Status CheckSendable(const google::protobuf::MessageLite& response, const Limits& limits) {
  const int64_t bytes = static_cast<int64_t>(response.ByteSizeLong());
  if (bytes <= limits.max_response_bytes) return absl::OkStatus();
  return WithReason(absl::ResourceExhaustedError(
                        absl::StrCat("response: got ", bytes, " bytes, want at most ",
                                     limits.max_response_bytes, " (--max-response-bytes)")),
                    "RESPONSE_TOO_LARGE");
}

}  // namespace kvern::rpc
