// Printed from the registration tables themselves, so that the list cannot go stale.
#include "server/rpc/stages_to_proto.h"

#include "server/pipeline/budgeter.h"
#include "server/pipeline/codec.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/scorer.h"
#include "server/pipeline/selector.h"
#include "server/rpc/compress_to_proto.h"

namespace kvern::rpc {
namespace {

struct InputName {
  uint16_t bit;
  const char* name;
};
constexpr InputName kInputNames[] = {
    {pipeline::kNeedsCentres, "calibration"},
    {pipeline::kNeedsMoments, "query_moments"},
    {pipeline::kNeedsSensitivity, "layer_sensitivity"},
    {pipeline::kNeedsQueryWindow, "q_window"},
    {pipeline::kNeedsAttentionMass, "attention_mass"},
    {pipeline::kNeedsExternalScores, "external_scores"},
    {pipeline::kNeedsRope, "rope"},
    {pipeline::kNeedsValues, "values"},
};

const char* TypeName(pipeline::ParamType type) {
  switch (type) {
    case pipeline::ParamType::kInt:
      return "int";
    case pipeline::ParamType::kFloat:
      return "float";
    case pipeline::ParamType::kBool:
      return "bool";
    case pipeline::ParamType::kEnum:
      break;
  }
  return "enum";
}

void StageToProto(const pipeline::StageInfo& info, const char* kind, v1::StageInfo* out) {
  out->set_kind(kind);
  out->set_name(info.name);
  out->set_help(info.help);
  for (const pipeline::ParamSpec& param : info.params) {
    v1::StageParam* added = out->add_params();
    added->set_name(param.name);
    added->set_type(TypeName(param.type));
    added->set_default_value(param.default_value);
    added->set_range(param.range);
    added->set_help(param.help);
  }
  for (const InputName& input : kInputNames) {
    if ((info.inputs & input.bit) != 0) out->add_inputs(input.name);
  }
  for (int shape_class = 0; shape_class <= 4; ++shape_class) {
    if ((info.shape_classes >> shape_class & 1) == 0) continue;
    out->add_shape_classes(ToProto(static_cast<pipeline::ShapeClass>(shape_class)));
  }
}

template <class Entries>
void AddStages(const Entries& entries, const char* kind, v1::ListStagesResponse* response) {
  for (const auto& entry : entries) StageToProto(entry.info, kind, response->add_stages());
}

}  // namespace

void StagesToProto(v1::ListStagesResponse* response) {
  AddStages(pipeline::Budgeters(), "budgeter", response);
  AddStages(pipeline::Scorers(), "scorer", response);
  AddStages(pipeline::Selectors(), "selector", response);
  AddStages(pipeline::Codecs(), "codec", response);
  for (const pipeline::PresetText& preset : pipeline::Presets()) {
    v1::PresetInfo* added = response->add_presets();
    added->set_name(preset.name);
    added->set_help(preset.help);
    added->set_calibrated(preset.calibrated);
    added->set_uncalibrated(preset.uncalibrated);
  }
}

}  // namespace kvern::rpc
