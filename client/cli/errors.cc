// The next step hangs on the machine-readable reason, else on the code.
#include "client/cli/errors.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cpp/status_details.h"
#include "kernels/base/error_reason.h"

namespace kvern::cli {
namespace {

constexpr char kUsageReason[] = "USAGE";

struct NextStep {
  const char* reason;
  const char* text;
};
constexpr NextStep kByReason[] = {
    {kUsageReason, "see `kvern --help`, or `kvern VERB --help` for examples"},
    {"UNREACHABLE", "start one with `kvernd`, name it with --server, or use --local"},
    {"BROKER_MISSING", "use --via auto, or --server unix:PATH"},
    {"INPUT_MISSING", "add --calibration FILE or the tensor it names, or choose another scorer"},
    {"FILE_ACCESS", "check the path and who may read or write there"},
    {"FILE_CONTENT",
     "`kvern inspect FILE` shows what a good one holds; docs/quickstart.md writes one in Python"},
    {"RESPONSE_TOO_LARGE", "use --via store, or raise --max-response-bytes of kvernd"},
    {"CODEC_NEEDS_STORE", "use --via store, or --codec raw16"},
    {"BUDGET_BELOW_PROTECTED",
     "raise the budget, lower --sink, or keep every token of a short cache: --policy safe"},
    {"ROPE_UNKNOWN",
     "put inv_freq or rope_theta into the cache file, or choose a codec without rm"},
    {"SHAPE_CLASS", "choose a policy with equal counts: --budgeter uniform, --selector topk"},
    {"MODEL_UNKNOWN", "register it: kvern models register CACHE.safetensors"},
    {"MODEL_IN_USE", "delete its stored sequences first: kvern store list"},
    {"SEQUENCE_UNKNOWN", "`kvern store list` shows what is stored"},
    {"POOL_EXPIRED", "run the command again: pools end with the process that made them"},
    {"CALIBRATION_UNKNOWN", "upload it: kvern models import FILE"},
    {"OBSERVED_TOO_FEW", "observe more: kvern models observe CACHE, or --calibration FILE"},
    {"EPOCH_MISMATCH", "fetch the sequence's epoch (kvern store list) and try again"},
};

std::string NextStepFor(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  for (const NextStep& step : kByReason) {
    if (reason == step.reason) return step.text;
  }
  if (const std::optional<absl::Duration> delay = client::RetryDelayOf(status)) {
    return absl::StrCat("try again in ", absl::FormatDuration(*delay),
                        ", or raise the limit that the message names (a flag of kvernd)");
  }
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return "the server went away or is shutting down: try again in a moment";
    case absl::StatusCode::kDeadlineExceeded:
      return "raise --timeout, or try when the server is less busy; nothing has changed";
    case absl::StatusCode::kInvalidArgument:
      return "`kvern stages` lists every name, parameter and range";
    case absl::StatusCode::kFailedPrecondition:
      return "give what the message names, or choose a policy that does not need it";
    case absl::StatusCode::kNotFound:
      return "check the name";
    case absl::StatusCode::kAlreadyExists:
      return "choose another name, or delete the old one first";
    default:
      return "the server's log has the rest (`journalctl`, `docker logs`)";
  }
}

}  // namespace

absl::Status UsageError(const std::string& message) {
  return WithReason(absl::InvalidArgumentError(message), kUsageReason);
}

std::string ErrorText(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  const std::string field = FieldOf(status);
  std::string text = "kvern: ";
  if (reason != kUsageReason) {
    absl::StrAppend(&text, absl::StatusCodeToString(status.code()));
    if (!reason.empty()) absl::StrAppend(&text, "/", reason);
    absl::StrAppend(&text, ": ");
  }
  // Servers name the field in the message as well; say it once.
  const bool named = absl::string_view(status.message()).find(field) != absl::string_view::npos;
  if (!field.empty() && !named) absl::StrAppend(&text, field, ": ");
  absl::StrAppend(&text, status.message(), "\nnext:  ", NextStepFor(status), "\n");
  return text;
}

int ExitCode(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  if (ReasonOf(status) == kUsageReason) return kExitUsage;
  return absl::IsUnavailable(status) ? kExitUnreachable : kExitRefused;
}

}  // namespace kvern::cli
