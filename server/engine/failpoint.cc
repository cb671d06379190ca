// One word holds two bits per point, so that asking costs a single relaxed load.
#include "server/engine/failpoint.h"

#include <atomic>
#include <csignal>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

constexpr FailpointInfo kFailpoints[] = {
    {Failpoint::kBeforeCopyMove, "before_copy_move", FailEffect::kUnchanged},
    {Failpoint::kWithinCopyMove, "within_copy_move", FailEffect::kUnchanged},
    {Failpoint::kAfterCopyMove, "after_copy_move", FailEffect::kUnchanged},
    {Failpoint::kBeforePublish, "before_publish", FailEffect::kUnchanged},
    {Failpoint::kAfterPublish, "after_publish", FailEffect::kApplied},
    {Failpoint::kWithinCompactMove, "within_compact_move", FailEffect::kPoisoned},
    {Failpoint::kBeforeStoreCommit, "before_store_commit", FailEffect::kUnchanged},
};

std::atomic<uint32_t> set_points{0};

int ShiftOf(Failpoint point) { return 2 * static_cast<int>(point); }

FailAction ActionOf(Failpoint point) {
  const uint32_t points = set_points.load(std::memory_order_relaxed);
  return static_cast<FailAction>((points >> ShiftOf(point)) & 3u);
}

const FailpointInfo* FindPoint(absl::string_view name) {
  for (const FailpointInfo& info : kFailpoints) {
    if (name == info.name) return &info;
  }
  return nullptr;
}

absl::Status BadSetting(absl::string_view setting) {
  std::vector<std::string> names;
  for (const FailpointInfo& info : kFailpoints) names.push_back(info.name);
  return absl::InvalidArgumentError(
      absl::StrCat("failpoint: got ", setting, ", want NAME=error or NAME=abort with NAME one of ",
                   absl::StrJoin(names, ", ")));
}

}  // namespace

std::span<const FailpointInfo> Failpoints() { return kFailpoints; }

void SetFailpoint(Failpoint point, FailAction action) {
  const uint32_t mask = 3u << ShiftOf(point);
  const uint32_t bits = static_cast<uint32_t>(action) << ShiftOf(point);
  uint32_t points = set_points.load();
  while (!set_points.compare_exchange_weak(points, (points & ~mask) | bits)) {
  }
}

void ClearFailpoints() { set_points.store(0); }

absl::Status SetFailpoints(absl::string_view text) {
  for (absl::string_view setting : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::vector<absl::string_view> parts = absl::StrSplit(setting, '=');
    const FailpointInfo* info = parts.size() == 2 ? FindPoint(parts[0]) : nullptr;
    if (info == nullptr || (parts[1] != "error" && parts[1] != "abort")) {
      return BadSetting(setting);
    }
    SetFailpoint(info->point, parts[1] == "error" ? FailAction::kError : FailAction::kAbort);
  }
  return absl::OkStatus();
}

absl::Status Hit(Failpoint point) {
  const FailAction action = ActionOf(point);
  if (action == FailAction::kOff) return absl::OkStatus();
  // No handler and no destructor runs: what a test sees afterwards is what a crash leaves.
  if (action == FailAction::kAbort) std::raise(SIGKILL);
  return absl::InternalError(
      absl::StrCat("failpoint ", kFailpoints[static_cast<int>(point)].name, ": set to fail"));
}

bool IsSet(Failpoint point) { return ActionOf(point) != FailAction::kOff; }

}  // namespace kvern::engine
