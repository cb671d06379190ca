// What every registered stage says of itself; ListStages and `kvern stages` print it.
#ifndef KVERN_SERVER_PIPELINE_STAGE_INFO_H_
#define KVERN_SERVER_PIPELINE_STAGE_INFO_H_

#include <cstdint>
#include <span>

#include "server/pipeline/policy.h"
#include "server/pipeline/stage_params.h"

namespace kvern::pipeline {

// Inputs beyond keys that a stage cannot work without; a bit set.
enum Inputs : uint16_t {
  kNeedsNothing = 0,
  kNeedsCentres = 1 << 0,         // "calibration"
  kNeedsMoments = 1 << 1,         // "query_moments"
  kNeedsSensitivity = 1 << 2,     // "layer_sensitivity"
  kNeedsQueryWindow = 1 << 3,     // "q_window"
  kNeedsAttentionMass = 1 << 4,   // "attention_mass"
  kNeedsExternalScores = 1 << 5,  // "external_scores"
  kNeedsRope = 1 << 6,            // "rope": inverse frequencies and positions
  kNeedsValues = 1 << 7,          // "values"
};

struct StageInfo {
  const char* name;
  const char* help;  // one sentence with the paper or source
  std::span<const ParamSpec> params;
  uint16_t inputs = kNeedsNothing;  // at default parameters
  uint8_t shape_classes = 0x1F;     // bit n: can yield class Sn
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_STAGE_INFO_H_
