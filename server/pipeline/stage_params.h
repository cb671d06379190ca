// Declared, typed parameters of a stage: the one source of parsing, errors and help.
#ifndef KVERN_SERVER_PIPELINE_STAGE_PARAMS_H_
#define KVERN_SERVER_PIPELINE_STAGE_PARAMS_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/pipeline/policy.h"

namespace kvern::pipeline {

enum class ParamType : uint8_t { kInt, kFloat, kBool, kEnum };

struct ParamSpec {
  const char* name;
  ParamType type;
  const char* default_value;
  const char* range;  // kInt, kFloat: "1..4096"; kEnum: "mean|max"; kBool: "false|true"
  const char* help;
};

// The values of one stage's declared parameters, defaults filled in, each inside its range.
class StageParams {
 public:
  // Errors: InvalidArgument for an unknown parameter (lists those known), a value that does not
  // parse or leaves its range; the message names stage, parameter, got and want.
  static absl::StatusOr<StageParams> Parse(const StageSpec& spec,
                                           std::span<const ParamSpec> declared);

  // The name must be declared with that type.
  int64_t Int(absl::string_view name) const;
  double Float(absl::string_view name) const;
  bool Bool(absl::string_view name) const;
  const std::string& Enum(absl::string_view name) const;

 private:
  std::map<std::string, std::string> values_;
};

// Parses `name:k=v,k=v`; a bare `k` means `k=true`. Errors: InvalidArgument.
absl::StatusOr<StageSpec> ParseStageSpec(absl::string_view text);
// The canonical text: parameters in name order, those at their default included only if given.
std::string ToText(const StageSpec& spec);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_STAGE_PARAMS_H_
