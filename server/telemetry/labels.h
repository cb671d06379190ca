// The closed sets of label values: every child of every family exists from the start (ruling 22).
#ifndef KVERN_SERVER_TELEMETRY_LABELS_H_
#define KVERN_SERVER_TELEMETRY_LABELS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/engine/engine_events.h"
#include "server/engine/rpc_events.h"

namespace kvern::telemetry {

// "ok", "invalid_argument", ...: the canonical codes in lower case.
std::string CodeLabel(absl::StatusCode code);
// Codes that `rpc` can answer; another one is counted as "unknown".
std::vector<absl::StatusCode> CodesOf(engine::Rpc rpc);

std::vector<std::string> PolicyLabels();  // preset names, then "custom"
std::vector<std::string> ReasonLabels();  // error reasons of failed sequences, then "other"
std::vector<std::string> EngineLabels();  // in the order of memory::EngineLabel

struct StageLabel {
  std::string stage;
  std::string name;  // registered stage, "blend", or "" for work that no stage names
};
std::vector<StageLabel> StageLabels();

const char* Name(engine::Outcome outcome);
const char* Name(engine::Rejection reason);
const char* Name(engine::PoolEvent event);

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_LABELS_H_
