// The budgeters by name.
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/budgeter.h"
#include "server/pipeline/quoted.h"

namespace kvern::pipeline {

absl::StatusOr<std::unique_ptr<Budgeter>> MakeUniformBudgeter(const StageParams& params);
absl::StatusOr<std::unique_ptr<Budgeter>> MakeSensitivityBudgeter(const StageParams& params);
absl::StatusOr<std::unique_ptr<Budgeter>> MakePyramidBudgeter(const StageParams& params);

namespace {

constexpr uint8_t kEqualCounts = 0b00111;
constexpr uint8_t kLayerCounts = 0b01000;

constexpr ParamSpec kSensitivityParams[] = {
    {"power", ParamType::kFloat, "0.5", "0..4", "exponent on each layer's sensitivity"},
    {"floor", ParamType::kInt, "36", "0..4194304", "tokens that every layer gets first"},
};
constexpr ParamSpec kPyramidParams[] = {
    {"beta", ParamType::kInt, "20", "1..1000", "a flat share over the last layer's share"},
    {"window", ParamType::kInt, "64", "0..65536", "tokens that every layer gets first"},
    {"compat", ParamType::kEnum, "none", "none|kvpress",
     "kvpress: that project's rounding and fallback, sums are then not exact"},
};

constexpr BudgeterEntry kBudgeters[] = {
    {{"uniform", "The same tokens in every layer.", {}, kNeedsNothing, kEqualCounts},
     &MakeUniformBudgeter},
    {{"sensitivity",
      "Layers in proportion to a power of their measured sensitivity, above a floor.",
      kSensitivityParams, kNeedsSensitivity, kLayerCounts},
     &MakeSensitivityBudgeter},
    {{"pyramid", "Linear ramp, first layers most (PyramidKV, arXiv 2406.02069); for parity.",
      kPyramidParams, kNeedsNothing, kLayerCounts},
     &MakePyramidBudgeter},
};

}  // namespace

std::span<const BudgeterEntry> Budgeters() { return kBudgeters; }

absl::StatusOr<std::unique_ptr<Budgeter>> MakeBudgeter(const StageSpec& spec) {
  std::string known;
  for (const BudgeterEntry& entry : kBudgeters) {
    if (spec.name != entry.info.name) {
      absl::StrAppend(&known, known.empty() ? "" : ", ", entry.info.name);
      continue;
    }
    KVERN_ASSIGN_OR_RETURN(const StageParams params, StageParams::Parse(spec, entry.info.params));
    return entry.make(params);
  }
  return WithField(absl::InvalidArgumentError(
                       absl::StrCat("budgeter got ", Quoted(spec.name), ", want one of ", known)),
                   "name");
}

}  // namespace kvern::pipeline
