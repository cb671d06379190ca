// Parses a stage's words against what the stage declares; nothing undeclared gets through.
#include "server/pipeline/stage_params.h"

#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/quoted.h"

namespace kvern::pipeline {
namespace {

using Bounds = std::pair<absl::string_view, absl::string_view>;

// "1..4096" -> {"1", "4096"}; {"", ""} where there is no "..".
Bounds SplitRange(absl::string_view range) {
  const size_t dots = range.find("..");
  if (dots == absl::string_view::npos) return {};
  return {range.substr(0, dots), range.substr(dots + 2)};
}

bool IntInRange(absl::string_view text, absl::string_view range) {
  const auto [low_text, high_text] = SplitRange(range);
  int64_t low, high, value;
  if (!absl::SimpleAtoi(low_text, &low) || !absl::SimpleAtoi(high_text, &high)) return false;
  return absl::SimpleAtoi(text, &value) && value >= low && value <= high;
}

bool FloatInRange(absl::string_view text, absl::string_view range) {
  const auto [low_text, high_text] = SplitRange(range);
  double low, high, value;
  if (!absl::SimpleAtod(low_text, &low) || !absl::SimpleAtod(high_text, &high)) return false;
  return absl::SimpleAtod(text, &value) && std::isfinite(value) && value >= low && value <= high;
}

// One of the words, or an integer where a word is itself a range: "full|1..1024".
bool IsOneOf(absl::string_view text, absl::string_view words) {
  for (const absl::string_view word : absl::StrSplit(words, '|')) {
    if (text == word || IntInRange(text, word)) return true;
  }
  return false;
}

bool Accepts(const ParamSpec& param, absl::string_view text) {
  switch (param.type) {
    case ParamType::kInt:
      return IntInRange(text, param.range);
    case ParamType::kFloat:
      return FloatInRange(text, param.range);
    case ParamType::kBool:
      return text == "true" || text == "false";
    case ParamType::kEnum:
      return IsOneOf(text, param.range);
  }
  return false;
}

const ParamSpec* Find(std::span<const ParamSpec> declared, absl::string_view name) {
  for (const ParamSpec& param : declared) {
    if (name == param.name) return &param;
  }
  return nullptr;
}

absl::Status UnknownParameter(const StageSpec& spec, const std::string& name,
                              std::span<const ParamSpec> declared) {
  std::string known;
  for (const ParamSpec& param : declared) {
    absl::StrAppend(&known, known.empty() ? "" : ", ", param.name);
  }
  return WithField(absl::InvalidArgumentError(absl::StrCat(
                       Quoted(spec.name), ": got the unknown parameter ", Quoted(name), ", want ",
                       known.empty() ? "none" : absl::StrCat("one of ", known))),
                   "params");
}

bool IsWord(absl::string_view text) {
  for (const char c : text) {
    const bool word = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
    if (!word) return false;
  }
  return !text.empty();
}

absl::Status Malformed(absl::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("stage got ", Quoted(text), ", want name or name:key=value,key=value"));
}

}  // namespace

absl::StatusOr<StageParams> StageParams::Parse(const StageSpec& spec,
                                               std::span<const ParamSpec> declared) {
  StageParams params;
  for (const ParamSpec& param : declared) params.values_[param.name] = param.default_value;
  for (const auto& [name, text] : spec.params) {
    const ParamSpec* param = Find(declared, name);
    if (param == nullptr) return UnknownParameter(spec, name, declared);
    if (!Accepts(*param, text)) {
      return WithField(
          absl::InvalidArgumentError(absl::StrCat(Quoted(spec.name), ": ", name, " got ",
                                                  Quoted(text), ", want ", param->range)),
          absl::StrCat("params.", name));
    }
    params.values_[name] = text;
  }
  return params;
}

int64_t StageParams::Int(absl::string_view name) const {
  int64_t value = 0;
  KVERN_CHECK(absl::SimpleAtoi(Enum(name), &value));
  return value;
}

double StageParams::Float(absl::string_view name) const {
  double value = 0;
  KVERN_CHECK(absl::SimpleAtod(Enum(name), &value));
  return value;
}

bool StageParams::Bool(absl::string_view name) const { return Enum(name) == "true"; }

const std::string& StageParams::Enum(absl::string_view name) const {
  const auto found = values_.find(std::string(name));
  KVERN_CHECK(found != values_.end());
  return found->second;
}

absl::StatusOr<StageSpec> ParseStageSpec(absl::string_view text) {
  const size_t colon = text.find(':');
  StageSpec spec;
  spec.name = std::string(text.substr(0, colon));
  if (!IsWord(spec.name)) return Malformed(text);
  if (colon == absl::string_view::npos) return spec;
  for (const absl::string_view part : absl::StrSplit(text.substr(colon + 1), ',')) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    const bool bare = part.find('=') == absl::string_view::npos;
    if (!IsWord(pair.first) || (!bare && pair.second.empty())) return Malformed(text);
    const bool fresh =
        spec.params.emplace(std::string(pair.first), bare ? "true" : std::string(pair.second))
            .second;
    if (!fresh) {
      return absl::InvalidArgumentError(absl::StrCat(Quoted(spec.name), ": parameter ",
                                                     Quoted(pair.first), " got twice, want once"));
    }
  }
  return spec;
}

std::string ToText(const StageSpec& spec) {
  std::string text = spec.name;
  char separator = ':';
  for (const auto& [name, value] : spec.params) {
    absl::StrAppend(&text, std::string(1, separator), name, "=", value);
    separator = ',';
  }
  return text;
}

}  // namespace kvern::pipeline
