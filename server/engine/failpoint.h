// Named points where a test, or an operator by KVERN_FAILPOINTS, makes the engine fail or die.
// Always compiled in; while none is set, a point costs one relaxed load.
#ifndef KVERN_SERVER_ENGINE_FAILPOINT_H_
#define KVERN_SERVER_ENGINE_FAILPOINT_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvern::engine {

enum class Failpoint : uint8_t {
  kBeforeCopyMove,
  kWithinCopyMove,
  kAfterCopyMove,
  kBeforePublish,
  kAfterPublish,
  kWithinCompactMove,
  kBeforeStoreCommit,
};

enum class FailAction : uint8_t { kOff, kError, kAbort };

// What an error at the point leaves behind.
enum class FailEffect : uint8_t {
  kUnchanged,  // the sequence fails, its old view and its epoch stand
  kPoisoned,   // DATA_LOSS
  kApplied,    // the result is published already, so it stands
};

struct FailpointInfo {
  Failpoint point;
  const char* name;
  FailEffect effect;
};
// All points, in the order of the enum.
std::span<const FailpointInfo> Failpoints();

void SetFailpoint(Failpoint point, FailAction action);
void ClearFailpoints();
// Sets points from text: `name=error,name=abort`. Errors: InvalidArgument listing names and
// actions.
absl::Status SetFailpoints(absl::string_view text);

// Internal when the point is set to fail; ends the process at once when it is set to abort.
absl::Status Hit(Failpoint point);
bool IsSet(Failpoint point);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_FAILPOINT_H_
