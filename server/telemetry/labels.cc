// Label values come from the tables that define them, so a new preset or stage appears by itself.
#include "server/telemetry/labels.h"

#include "absl/strings/ascii.h"
#include "server/pipeline/budgeter.h"
#include "server/pipeline/codec.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/scorer.h"
#include "server/pipeline/selector.h"

namespace kvern::telemetry {
namespace {

using absl::StatusCode;
using engine::Rpc;

constexpr StatusCode kEveryRpc[] = {StatusCode::kOk,
                                    StatusCode::kCancelled,
                                    StatusCode::kUnknown,
                                    StatusCode::kInvalidArgument,
                                    StatusCode::kDeadlineExceeded,
                                    StatusCode::kResourceExhausted,
                                    StatusCode::kUnavailable,
                                    StatusCode::kInternal};

template <class Entries>
void AddStages(const char* stage, const Entries& entries, std::vector<StageLabel>* labels) {
  for (const auto& entry : entries) labels->push_back({stage, entry.info.name});
}

}  // namespace

std::string CodeLabel(absl::StatusCode code) {
  return absl::AsciiStrToLower(absl::StatusCodeToString(code));
}

std::vector<StatusCode> CodesOf(Rpc rpc) {
  std::vector<StatusCode> codes(std::begin(kEveryRpc), std::end(kEveryRpc));
  switch (rpc) {
    case Rpc::kCompressCache:
      codes.insert(codes.end(), {StatusCode::kNotFound, StatusCode::kAborted,
                                 StatusCode::kFailedPrecondition, StatusCode::kDataLoss});
      break;
    case Rpc::kRegisterPool:
    case Rpc::kRegisterModel:
    case Rpc::kPutSequence:
      codes.insert(codes.end(), {StatusCode::kNotFound, StatusCode::kAlreadyExists,
                                 StatusCode::kFailedPrecondition});
      break;
    case Rpc::kAppendSequence:
    case Rpc::kFetchSequence:
      codes.insert(codes.end(),
                   {StatusCode::kNotFound, StatusCode::kAborted, StatusCode::kFailedPrecondition});
      break;
    case Rpc::kGetPool:
    case Rpc::kKeepPoolAlive:
    case Rpc::kGetSequence:
    case Rpc::kGetModel:
      codes.push_back(StatusCode::kNotFound);
      break;
    case Rpc::kDeleteModel:
      codes.push_back(StatusCode::kFailedPrecondition);
      break;
    default:
      break;
  }
  return codes;
}

std::vector<std::string> PolicyLabels() {
  std::vector<std::string> labels;
  for (const pipeline::PresetText& preset : pipeline::Presets()) labels.push_back(preset.name);
  labels.push_back("custom");
  return labels;
}

std::vector<std::string> ReasonLabels() {
  return {"EPOCH_MISMATCH",
          "POOL_EXPIRED",
          "SEQUENCE_UNKNOWN",
          "MODEL_UNKNOWN",
          "CALIBRATION_UNKNOWN",
          "CODEC_NEEDS_STORE",
          "BUDGET_BELOW_PROTECTED",
          "ROPE_UNKNOWN",
          "SHAPE_CLASS",
          "INPUT_MISSING",
          "DESTINATION_TOO_SMALL",
          "SEQUENCE_PACKED",
          "SEQUENCE_POISONED",
          "DEVICE_LOST",
          "OBSERVED_TOO_FEW",
          "PLAN_STALE",
          "other"};
}

std::vector<std::string> EngineLabels() {
  return {"vllm", "sglang", "trtllm", "llamacpp", "transformers", "other"};
}

std::vector<StageLabel> StageLabels() {
  std::vector<StageLabel> labels = {{"queue", ""}, {"move", ""}};
  AddStages("plan", pipeline::Budgeters(), &labels);
  AddStages("score", pipeline::Scorers(), &labels);
  labels.push_back({"score", "blend"});
  AddStages("select", pipeline::Selectors(), &labels);
  AddStages("encode", pipeline::Codecs(), &labels);
  for (const char* stage : {"plan", "score", "select", "encode"}) labels.push_back({stage, ""});
  return labels;
}

const char* Name(engine::Outcome outcome) {
  constexpr const char* kNames[] = {"applied", "noop", "skipped", "failed"};
  return kNames[static_cast<int>(outcome)];
}

const char* Name(engine::Rejection reason) {
  constexpr const char* kNames[] = {"queue_full", "deadline",    "quota",
                                    "epoch",      "shape_class", "draining"};
  return kNames[static_cast<int>(reason)];
}

const char* Name(engine::PoolEvent event) {
  constexpr const char* kNames[] = {"register", "unregister", "peer_died"};
  return kNames[static_cast<int>(event)];
}

}  // namespace kvern::telemetry
