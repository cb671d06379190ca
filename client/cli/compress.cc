// compress and plan: one path, of which plan stops before bytes move.
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/errors.h"
#include "client/cli/message_json.h"
#include "client/cli/policy_flags.h"
#include "client/cli/report.h"
#include "client/cpp/cache_model.h"
#include "client/cpp/compress_file.h"
#include "client/cpp/upload.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kCompressExamples[] = R"(Examples:
  kvern compress in.safetensors -o out.safetensors
      the default policy (balanced: a quarter of the bytes)
  kvern compress in.safetensors -o out.safetensors --policy balanced \
      --calibration calibration.safetensors --calibration moments.safetensors
      with the model's query statistics: better scores, budgets per layer
  kvern compress in.safetensors -o out.safetensors --keep-ratio 0.5 --scorer keydiff
      half of the tokens by one scorer, bytes as they are
  kvern compress in.safetensors -o out.safetensors --budget-bytes 4MiB --codec k=i8t+rm,v=lm4 \
      --scorer keydiff:unrotate --scorer key_norm --blend max
      several scorers and codecs under one byte budget
Server flags (--server, --local, --json, ...): kvern --help)";
constexpr char kPlanExamples[] = R"(Examples:
  kvern plan in.safetensors
      what the default policy would keep
  kvern plan in.safetensors --policy balanced --calibration calibration.safetensors
      budgets per layer by measured sensitivity
Server flags (--server, --local, --json, ...): kvern --help)";

struct CompressFlags {
  std::string input;
  std::string output;
  PolicyFlags policy;
  std::vector<std::string> calibrations;
  std::string via = "auto";
  bool with_scores = false;
  bool validate_only = false;
};

void AddSharedFlags(CLI::App* verb, CompressFlags* flags) {
  verb->add_option("IN", flags->input, "cache file (kvern-cache/1)")->required();
  AddPolicyFlags(verb, &flags->policy);
  verb->add_option("--calibration", flags->calibrations,
                   "calibration or query moments of the model, or `observed`, what the server "
                   "counted of its live queries; repeat it")
      ->group("Policy")
      ->type_name("FILE")
      ->take_all()
      ->expected(1);
  verb->add_option(
          "--via", flags->via,
          "how the cache travels: auto, pool (shared memory), inline (in the message) or store")
      ->check(CLI::IsMember({"auto", "pool", "inline", "store"}).description(""))
      ->type_name("WAY");
}

client::Transport ParseVia(const std::string& via) {
  for (const auto transport :
       {client::Transport::kPool, client::Transport::kInline, client::Transport::kStore}) {
    if (via == Name(transport)) return transport;
  }
  return client::Transport::kAuto;
}

// Uploads what the server lacks and names all of them in the policy.
absl::Status AddCalibrations(const client::Client& client, const CompressFlags& flags,
                             const Console& console, v1::Policy* policy) {
  for (const std::string& path : flags.calibrations) {
    if (path == "observed") {
      policy->add_calibrations("calibrations/observed");
      continue;
    }
    KVERN_ASSIGN_OR_RETURN(const auto file, client::MappedFile::Open(path));
    KVERN_ASSIGN_OR_RETURN(
        const std::string name,
        client::ImportCalibration(client, file->Bytes(), ProgressLine(console, "calibration")));
    policy->add_calibrations(name);
  }
  return absl::OkStatus();
}

absl::Status RunCompress(const CompressFlags& flags, const GlobalFlags& globals,
                         const Console& console) {
  if (flags.output.empty() && !flags.validate_only) {
    return UsageError("want -o OUT, or --validate-only to only look");
  }
  client::CompressOptions options;
  KVERN_ASSIGN_OR_RETURN(const client::CacheFile cache, client::CacheFile::Open(flags.input));
  const int64_t cache_bytes = 2 * cache.Shape().PlaneBytes();
  KVERN_ASSIGN_OR_RETURN(options.policy, ToPolicy(flags.policy, cache_bytes));
  KVERN_ASSIGN_OR_RETURN(const v1::Model described, ModelOf(cache));
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals, cache_bytes));
  const client::Client& client = session.Client();
  KVERN_ASSIGN_OR_RETURN(const v1::Model model, FindOrRegisterModel(client, described));
  KVERN_RETURN_IF_ERROR(AddCalibrations(client, flags, console, &options.policy));
  options.model = model.name();
  options.via = ParseVia(flags.via);
  options.extent = flags.validate_only ? client::Extent::kPlan : client::Extent::kCompress;
  options.with_scores = flags.with_scores;
  options.progress = ProgressLine(console, "cache");
  KVERN_ASSIGN_OR_RETURN(const client::CompressedCache compressed,
                         CompressFile(client, cache, options));
  if (!flags.validate_only) {
    KVERN_RETURN_IF_ERROR(
        WriteCompressedFile(flags.output, cache, compressed, ProgressLine(console, "writing")));
  }
  if (globals.json) {
    nlohmann::ordered_json json = ResultToJson(cache, compressed);
    json["model"] = model.name();
    if (!flags.validate_only) json["output"] = flags.output;
    PrintJson(console, json);
    return absl::OkStatus();
  }
  // What the request itself named stands in the chain already.
  const bool own = !flags.calibrations.empty();
  PrintResult(console, cache, compressed, own ? v1::Model() : model);
  if (flags.validate_only) {
    PrintBudgets(console, cache, compressed);
    return absl::OkStatus();
  }
  console.out << "\nwrote " << flags.output << "\n"
              << Dim(console, absl::StrCat("look at it: kvern inspect ", flags.output)) << "\n";
  if (compressed.Packed()) {
    console.out << Dim(console, absl::StrCat("decode it:  kvern unpack ", flags.output,
                                             " -o DENSE.safetensors"))
                << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddCompress(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("compress", "compress a cache file into a smaller one");
  verb->footer(kCompressExamples);
  const auto flags = std::make_shared<CompressFlags>();
  AddSharedFlags(verb, flags.get());
  verb->add_option("-o,--output", flags->output, "result file")->type_name("OUT");
  verb->add_flag("--with-scores", flags->with_scores, "write the tokens' scores too");
  verb->add_flag("--validate-only", flags->validate_only, "plan only, as `kvern plan` does");
  commands->push_back({verb, [flags, globals](const Console& console) {
                         return RunCompress(*flags, *globals, console);
                       }});
}

void AddPlan(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("plan", "show budgets, bytes and chain; nothing is written");
  verb->footer(kPlanExamples);
  const auto flags = std::make_shared<CompressFlags>();
  flags->validate_only = true;
  AddSharedFlags(verb, flags.get());
  commands->push_back({verb, [flags, globals](const Console& console) {
                         return RunCompress(*flags, *globals, console);
                       }});
}

}  // namespace kvern::cli
