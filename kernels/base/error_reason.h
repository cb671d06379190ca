// Machine-readable reasons that travel inside absl::Status payloads to the ErrorInfo of the wire.
#ifndef KVERN_KERNELS_BASE_ERROR_REASON_H_
#define KVERN_KERNELS_BASE_ERROR_REASON_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvern {

// Attaches `reason` (UPPER_SNAKE, e.g. "ROPE_UNKNOWN") and optionally the request field path.
absl::Status WithReason(absl::Status status, absl::string_view reason);
absl::Status WithField(absl::Status status, absl::string_view field_path);
// Empty when none was attached.
std::string ReasonOf(const absl::Status& status);
std::string FieldOf(const absl::Status& status);

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_ERROR_REASON_H_
