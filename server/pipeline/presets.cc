// Presets that two model studies measured: quantize first, then evict what the bytes still ask for.
#include "server/pipeline/presets.h"

#include "absl/strings/str_cat.h"
#include "server/pipeline/fallback_chain.h"
#include "server/pipeline/resolve.h"

namespace kvern::pipeline {
namespace {

constexpr PresetParts kBalancedCalibrated = {
    .byte_share = 0.25, .budgeter = "sensitivity", .k_codec = "i8t+rm", .v_codec = "lm4"};
constexpr PresetParts kBalanced = {.byte_share = 0.25, .k_codec = "lm4+rm", .v_codec = "lm4"};
constexpr PresetParts kSmallCalibrated = {
    .byte_share = 0.125, .budgeter = "sensitivity", .k_codec = "lm4+rm", .v_codec = "sfv3"};
constexpr PresetParts kSmall = {.byte_share = 0.125, .k_codec = "sfv3+rm", .v_codec = "sfv3"};
constexpr PresetParts kTinyCalibrated = {
    .byte_share = 0.0625, .budgeter = "sensitivity", .k_codec = "sfv3+rm", .v_codec = "sfv3"};
constexpr PresetParts kTiny = {.byte_share = 0.0625, .k_codec = "sfv3+rm", .v_codec = "sfv2"};
constexpr PresetParts kSafe = {.k_codec = "i8t+rm", .v_codec = "i8t"};
constexpr PresetParts kEvict50 = {.keep_ratio = 0.5};

constexpr Preset kPresets[] = {
    {"balanced", "A quarter of the bytes: quantized first, then evicted. The default.",
     kBalancedCalibrated, kBalanced, /*prefers_calibration=*/true},
    {"small", "An eighth of the bytes: 3 to 4 bits, then evicted.", kSmallCalibrated, kSmall,
     /*prefers_calibration=*/true},
    {"tiny", "A sixteenth of the bytes: 2 to 3 bits, then evicted; the loss shows.",
     kTinyCalibrated, kTiny, /*prefers_calibration=*/true},
    {"safe", "About half of the bytes: 8-bit codes, no token goes.", kSafe, kSafe,
     /*prefers_calibration=*/false},
    {"evict50", "Half of the tokens as they are, in every layer and head: for stock engines.",
     kEvict50, kEvict50, /*prefers_calibration=*/false},
};

// A share of bytes has no flag of its own: it reads as `--budget-bytes 25%`.
std::string BudgetWords(const PresetParts& parts) {
  if (parts.byte_share > 0) return absl::StrCat("--budget-bytes ", parts.byte_share * 100, "% ");
  if (parts.keep_ratio > 0) return absl::StrCat("--keep-ratio ", parts.keep_ratio, " ");
  return "";
}

std::string Words(const PresetParts& parts) {
  std::string scorers;
  if (parts.HasBudget()) {
    for (const StageSpec& spec : DefaultScorers()) {
      absl::StrAppend(&scorers, "--scorer ", ToText(spec), " ");
    }
    scorers = absl::StrCat("--budgeter ", parts.budgeter, " ", scorers,
                           "--blend max --selector topk --recent 32 --recent-share 0.5 ");
  }
  return absl::StrCat(BudgetWords(parts), scorers, "--codec k=", parts.k_codec,
                      ",v=", parts.v_codec, " --sink 4");
}

}  // namespace

std::span<const Preset> PresetTable() { return kPresets; }

const Preset* FindPreset(absl::string_view name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return &preset;
  }
  return nullptr;
}

std::string PresetNames() {
  std::string names;
  for (const Preset& preset : kPresets) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", preset.name);
  }
  return names;
}

std::vector<PresetText> Presets() {
  std::vector<PresetText> texts;
  for (const Preset& preset : kPresets) {
    texts.push_back(
        {preset.name, preset.help, Words(preset.calibrated), Words(preset.uncalibrated)});
  }
  return texts;
}

}  // namespace kvern::pipeline
