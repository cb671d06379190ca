// Messages of the wire as JSON with real numbers: what `--json` prints.
#ifndef KVERN_CLIENT_CLI_MESSAGE_JSON_H_
#define KVERN_CLIENT_CLI_MESSAGE_JSON_H_

#include "client/cli/console.h"
#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"

namespace kvern::cli {

// Fields by their proto names, all of them, default or not, but for absent messages and optionals;
// enums by name; 64-bit integers as numbers; `bytes` fields are left out: they are tensors and ids.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

// Indented, with a newline; text that is no UTF-8 is repaired.
void PrintJson(const Console& console, const nlohmann::ordered_json& json);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_MESSAGE_JSON_H_
