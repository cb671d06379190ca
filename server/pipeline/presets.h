// The shipped policies (architecture.md 3), as data.
#ifndef KVERN_SERVER_PIPELINE_PRESETS_H_
#define KVERN_SERVER_PIPELINE_PRESETS_H_

#include <span>
#include <string>

#include "absl/strings/string_view.h"

namespace kvern::pipeline {

struct PresetParts {
  double byte_share = 0;  // of k + v, metadata counted; 0: none
  double keep_ratio = 0;  // 0: none
  const char* budgeter = "uniform";
  const char* k_codec = "raw16";
  const char* v_codec = "raw16";
  bool HasBudget() const { return byte_share > 0 || keep_ratio > 0; }
};

struct Preset {
  const char* name;
  const char* help;
  PresetParts calibrated;  // the calibration has layer_sensitivity
  PresetParts uncalibrated;
  bool prefers_calibration;  // the two differ, so that the second is a fallback
};

std::span<const Preset> PresetTable();
// Null for a name that is none.
const Preset* FindPreset(absl::string_view name);
std::string PresetNames();  // "balanced, small, tiny, safe, evict50"

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_PRESETS_H_
