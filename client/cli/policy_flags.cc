// Parts that were not given stay unset, so that the server's presets can fill them.
#include "client/cli/policy_flags.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/cli/errors.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kPolicyGroup[] = "Policy";

absl::Status SetStage(const std::string& flag, const std::string& text, v1::StageSpec* stage) {
  KVERN_ASSIGN_OR_RETURN(*stage, ParseStage(flag, text));
  return absl::OkStatus();
}

absl::Status SetCodecs(const std::string& text, v1::Codecs* codecs) {
  if (!absl::StrContains(text, '=')) {
    codecs->set_k(text);
    // Mean removal is for keys alone: one name for both means it there.
    codecs->set_v(absl::StrReplaceAll(text, {{"+rm", ""}, {"rm+", ""}}));
    return absl::OkStatus();
  }
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    if (absl::ConsumePrefix(&part, "k=") && !part.empty()) {
      codecs->set_k(std::string(part));
    } else if (absl::ConsumePrefix(&part, "v=") && !part.empty()) {
      codecs->set_v(std::string(part));
    } else {
      return UsageError(
          absl::StrCat("--codec: got '", text, "', want k=NAME,v=NAME or one name for both"));
    }
  }
  return absl::OkStatus();
}

absl::Status SetBudget(const PolicyFlags& flags, int64_t cache_bytes, v1::Policy* policy) {
  if (flags.budget_tokens.has_value()) policy->mutable_budget()->set_tokens(*flags.budget_tokens);
  if (flags.keep_ratio.has_value()) policy->mutable_budget()->set_keep_ratio(*flags.keep_ratio);
  if (!flags.budget_bytes.empty()) {
    KVERN_ASSIGN_OR_RETURN(const int64_t bytes,
                           ParseSize("--budget-bytes", flags.budget_bytes, cache_bytes));
    policy->mutable_budget()->set_bytes(bytes);
  }
  return absl::OkStatus();
}

}  // namespace

void AddPolicyFlags(CLI::App* app, PolicyFlags* flags) {
  const auto add = [app](const std::string& name, auto& value, const std::string& help) {
    return app->add_option(name, value, help)->group(kPolicyGroup);
  };
  add("--policy", flags->preset,
      "a shipped preset (default balanced; `kvern stages preset` lists all); other flags "
      "override single parts of it")
      ->type_name("NAME");
  add("--profile", flags->profile, "retrieval: best at finding facts; text: best at prose")
      ->check(CLI::IsMember({"retrieval", "text"}).description(""))
      ->type_name("NAME");
  auto* tokens = add("--budget-tokens", flags->budget_tokens,
                     "tokens to keep per (layer, kv_head), on average");
  auto* ratio = add("--keep-ratio", flags->keep_ratio, "share of the tokens to keep, in (0, 1]");
  auto* bytes = add("--budget-bytes", flags->budget_bytes,
                    "bytes of the result, metadata counted: 4MiB, or 25% of the cache")
                    ->type_name("SIZE");
  tokens->excludes(ratio)->excludes(bytes);
  ratio->excludes(bytes);
  add("--budgeter", flags->budgeter, "spreads the budget over layers (default uniform)")
      ->type_name("NAME[:k=v,...]");
  add("--scorer", flags->scorers, "judges tokens; repeat it to blend several")
      ->type_name("NAME[:k=v,...]")
      ->take_all()
      ->expected(1);
  add("--blend", flags->blend, "how several scorers become one (default max)")
      ->check(CLI::IsMember({"max", "sum"}).description(""))
      ->type_name("max|sum");
  add("--selector", flags->selector, "picks tokens from scores (default topk)")
      ->type_name("NAME[:k=v,...]");
  add("--codec", flags->codec,
      "k=NAME,v=NAME, or one name for both, its rm for keys alone (default raw16)")
      ->type_name("CODEC");
  add("--sink", flags->sink, "first tokens that always stay (default 4)");
  add("--recent", flags->recent, "last tokens that stay while the budget allows (default 32)");
  add("--recent-share", flags->recent_share,
      "recent tokens are at least this share of the layer's budget (default 0.5)");
  add("--positions", flags->positions,
      "keep: keys keep their rotation (default); renumber: re-rotated to 0..n-1")
      ->check(CLI::IsMember({"keep", "renumber"}).description(""))
      ->type_name("keep|renumber");
  add("--on-conflict", flags->on_conflict,
      "when protected tokens outnumber the budget: grow it (default), fail, or trim the oldest")
      ->check(CLI::IsMember({"grow", "fail", "trim"}).description(""))
      ->type_name("grow|fail|trim");
}

absl::StatusOr<v1::StageSpec> ParseStage(const std::string& flag, const std::string& text) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  v1::StageSpec stage;
  stage.set_name(parts.first);
  if (parts.first.empty()) {
    return UsageError(absl::StrCat(flag, ": got '", text, "', want NAME[:key=value,...]"));
  }
  for (const absl::string_view part : absl::StrSplit(parts.second, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    const bool bare = !absl::StrContains(part, '=');
    if (pair.first.empty() || (!bare && pair.second.empty()) ||
        !stage.mutable_params()->insert({pair.first, bare ? "true" : pair.second}).second) {
      return UsageError(
          absl::StrCat(flag, ": got '", part, "' in '", text, "', want key=value, each key once"));
    }
  }
  return stage;
}

absl::StatusOr<int64_t> ParseSize(const std::string& flag, const std::string& text, int64_t whole) {
  struct Unit {
    const char* suffix;
    double bytes;
  };
  constexpr Unit kUnits[] = {
      {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"KB", 1e3},         {"MB", 1e6},
      {"GB", 1e9},     {"K", 1024.0},      {"M", 1048576.0},      {"G", 1073741824.0}, {"B", 1.0}};
  absl::string_view number = text;
  double scale = 1;
  const bool share = absl::ConsumeSuffix(&number, "%");
  if (share) scale = static_cast<double>(whole) / 100;
  for (const Unit& unit : kUnits) {
    if (!share && absl::ConsumeSuffix(&number, unit.suffix)) {
      scale = unit.bytes;
      break;
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(number, &value) || !(value >= 0) || value * scale >= 9.0e18) {
    return UsageError(
        absl::StrCat(flag, ": got '", text, "', want a size such as 64000, 4MiB or 25%"));
  }
  return static_cast<int64_t>(std::floor(value * scale));
}

absl::StatusOr<v1::Policy> ToPolicy(const PolicyFlags& flags, int64_t cache_bytes) {
  v1::Policy policy;
  policy.set_preset(flags.preset);
  policy.set_profile(flags.profile);
  KVERN_RETURN_IF_ERROR(SetBudget(flags, cache_bytes, &policy));
  if (!flags.budgeter.empty()) {
    KVERN_RETURN_IF_ERROR(SetStage("--budgeter", flags.budgeter, policy.mutable_budgeter()));
  }
  for (const std::string& scorer : flags.scorers) {
    KVERN_RETURN_IF_ERROR(SetStage("--scorer", scorer, policy.add_scorers()));
  }
  if (flags.blend == "sum") policy.set_blend(v1::BLEND_SUM);
  if (flags.blend == "max") policy.set_blend(v1::BLEND_MAX);
  if (!flags.selector.empty()) {
    KVERN_RETURN_IF_ERROR(SetStage("--selector", flags.selector, policy.mutable_selector()));
  }
  if (!flags.codec.empty()) {
    KVERN_RETURN_IF_ERROR(SetCodecs(flags.codec, policy.mutable_codecs()));
  }
  if (flags.sink.has_value()) policy.set_sink_tokens(*flags.sink);
  if (flags.recent.has_value()) policy.set_recent_tokens(*flags.recent);
  if (flags.recent_share.has_value()) policy.set_recent_share(*flags.recent_share);
  if (flags.positions == "renumber") policy.set_positions(v1::POSITION_MODE_RENUMBER);
  if (flags.on_conflict == "fail") policy.set_on_conflict(v1::ON_CONFLICT_FAIL);
  if (flags.on_conflict == "trim") policy.set_on_conflict(v1::ON_CONFLICT_TRIM_OLDEST);
  return policy;
}

}  // namespace kvern::cli
