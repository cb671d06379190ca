// Models the server knows, and calibrations it holds.
#include <algorithm>
#include <memory>
#include <span>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "client/cpp/cache_model.h"
#include "client/cpp/observe.h"
#include "client/cpp/upload.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kModelsExamples[] = R"(Examples:
  kvern models list
  kvern models register chat.safetensors --name smollm2 --calibration moments.safetensors
      the geometry comes from the cache file; calibrations become the model's defaults
  kvern models import calibration.safetensors moments.safetensors
  kvern models observe chat.safetensors --name smollm2
      counts the queries of the file's q_window: calibration without a calibration run
  kvern models export smollm2 -o moments.safetensors --format query-moments
      keeps what was observed as a file for `import` and for kvernd --models; needs queries of
      every layer
  kvern models delete smollm2)";

struct ModelFlags {
  std::string input;
  std::string name;
  std::vector<std::string> calibrations;
  std::string output;
  std::string format = "calibration";
};

std::string ModelName(const std::string& name) {
  return name.empty() || absl::StartsWith(name, "models/") ? name : absl::StrCat("models/", name);
}

// Twelve digits of a hash tell artifacts apart; --json has all of it.
std::string ShortName(const std::string& calibration) {
  constexpr size_t kHashDigits = 12;
  return calibration.substr(0, calibration.find('/') + 1 + kHashDigits);
}

absl::Status ListModels(const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const v1::ListModelsResponse response, session.Client().ListModels());
  if (globals.json) {
    PrintJson(console, ToJson(response));
    return absl::OkStatus();
  }
  TextTable models({"model", "layers", "q_heads", "kv_heads", "head_dim", "rope", "calibrations",
                    "description"});
  for (const v1::Model& model : response.models()) {
    const v1::ModelSpec& spec = model.spec();
    models.Add({model.name(), absl::StrCat(spec.num_layers()), absl::StrCat(spec.q_heads()),
                absl::StrCat(spec.kv_heads()), absl::StrCat(spec.head_dim()),
                spec.has_rope() ? "known" : "unknown", absl::StrCat(model.calibrations_size()),
                spec.display_name()});
  }
  TextTable calibrations({"calibration", "format", "layers", "q_heads", "head_dim", "size"});
  for (const v1::Calibration& calibration : response.calibrations()) {
    calibrations.Add(
        {ShortName(calibration.name()),
         absl::StrCat(calibration.format(),
                      calibration.has_layer_sensitivity() ? " + layer_sensitivity" : ""),
         absl::StrCat(calibration.num_layers()), absl::StrCat(calibration.q_heads()),
         absl::StrCat(calibration.head_dim()), HumanBytes(calibration.size_bytes())});
  }
  if (models.Empty()) console.out << "no models\n";
  if (!models.Empty()) models.Print(console);
  if (!calibrations.Empty()) {
    console.out << "\n";
    calibrations.Print(console);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ImportAll(const client::Client& client,
                                                   const std::vector<std::string>& paths,
                                                   const Console& console) {
  std::vector<std::string> names;
  for (const std::string& path : paths) {
    KVERN_ASSIGN_OR_RETURN(const auto file, client::MappedFile::Open(path));
    KVERN_ASSIGN_OR_RETURN(
        names.emplace_back(),
        client::ImportCalibration(client, file->Bytes(), ProgressLine(console, path)));
  }
  return names;
}

absl::Status ImportCalibrations(const ModelFlags& flags, const GlobalFlags& globals,
                                const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         ImportAll(session.Client(), flags.calibrations, console));
  if (globals.json) {
    PrintJson(console, {{"calibrations", names}});
    return absl::OkStatus();
  }
  for (const std::string& name : names) console.out << name << "\n";
  return absl::OkStatus();
}

absl::Status RegisterModel(const ModelFlags& flags, const GlobalFlags& globals,
                           const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const client::CacheFile cache, client::CacheFile::Open(flags.input));
  KVERN_ASSIGN_OR_RETURN(v1::Model model, ModelOf(cache));
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         ImportAll(session.Client(), flags.calibrations, console));
  model.set_name(ModelName(flags.name));
  model.mutable_calibrations()->Assign(names.begin(), names.end());
  KVERN_ASSIGN_OR_RETURN(const v1::Model registered, session.Client().RegisterModel(model));
  if (globals.json) {
    PrintJson(console, ToJson(registered));
  } else {
    console.out << registered.name() << "\n";
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::ObserveQueriesResponse> ObserveFile(const client::Client& client,
                                                       const ModelFlags& flags,
                                                       const std::string& path,
                                                       std::string* model) {
  KVERN_ASSIGN_OR_RETURN(const client::CacheFile cache, client::CacheFile::Open(path));
  *model = ModelName(flags.name);
  if (model->empty()) {
    KVERN_ASSIGN_OR_RETURN(const v1::Model described, ModelOf(cache));
    KVERN_ASSIGN_OR_RETURN(const v1::Model found, FindOrRegisterModel(client, described));
    *model = found.name();
  }
  KVERN_ASSIGN_OR_RETURN(const client::QueriesToObserve queries, ObservableQueries(cache, *model));
  return client::ObserveQueries(client, queries);
}

absl::Status ObserveCaches(const ModelFlags& flags, const GlobalFlags& globals,
                           const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  for (const std::string& path : flags.calibrations) {
    std::string model;
    KVERN_ASSIGN_OR_RETURN(const v1::ObserveQueriesResponse counted,
                           ObserveFile(session.Client(), flags, path, &model));
    if (globals.json) {
      nlohmann::ordered_json json = ToJson(counted);
      json["model"] = model;
      PrintJson(console, json);
      continue;
    }
    const v1::ObservedQueries& observed = counted.observed();
    const auto& of_layers = observed.layer_tokens();
    const auto layers = of_layers.size() - std::count(of_layers.begin(), of_layers.end(), 0);
    console.out << model << ": counted " << counted.counted_tokens() << " query positions, "
                << *std::max_element(of_layers.begin(), of_layers.end()) << " so far in " << layers
                << " of " << of_layers.size() << " layers; serves policies from "
                << observed.confident_tokens() << " on\n";
  }
  return absl::OkStatus();
}

absl::Status ExportObserved(const ModelFlags& flags, const GlobalFlags& globals,
                            const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const std::string file,
                         client::ExportCalibration(session.Client(), ModelName(flags.name),
                                                   absl::StrCat("kvern-", flags.format, "/1")));
  KVERN_ASSIGN_OR_RETURN(const formats::Safetensors contents,
                         formats::ParseSafetensors(std::as_bytes(std::span(file))));
  KVERN_RETURN_IF_ERROR(
      client::WriteSafetensorsFile(flags.output, contents, ProgressLine(console, flags.output)));
  if (globals.json) {
    PrintJson(console, {{"output", flags.output},
                        {"model", ModelName(flags.name)},
                        {"observed_tokens", contents.Metadata("observed_tokens")}});
  } else {
    console.out << "wrote " << flags.output << ", of " << contents.Metadata("observed_tokens")
                << " query positions\n";
  }
  return absl::OkStatus();
}

absl::Status DeleteModel(const ModelFlags& flags, const GlobalFlags& globals,
                         const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_RETURN_IF_ERROR(session.Client().DeleteModel(ModelName(flags.name)));
  if (globals.json) {
    PrintJson(console, {{"deleted", ModelName(flags.name)}});
  } else {
    console.out << "deleted " << ModelName(flags.name) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddModels(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("models", "models the server knows, and calibrations");
  verb->footer(kModelsExamples);
  verb->require_subcommand(0, 1);
  const auto flags = std::make_shared<ModelFlags>();
  const auto add = [=](CLI::App* chosen, auto run) {
    commands->push_back({chosen, [flags, globals, run](const Console& console) {
                           return run(*flags, *globals, console);
                         }});
  };
  const auto list = [](const ModelFlags&, const GlobalFlags& all, const Console& console) {
    return ListModels(all, console);
  };
  add(verb, list);
  add(verb->add_subcommand("list", "all models and calibrations (the default)"), list);

  CLI::App* enroll = verb->add_subcommand("register", "register the model of a cache file");
  enroll->add_option("CACHE", flags->input, "cache file that describes the model")->required();
  enroll->add_option("--name", flags->name, "its id (default: derived from the geometry)")
      ->type_name("ID");
  enroll->add_option("--calibration", flags->calibrations, "default calibration; repeat it")
      ->type_name("FILE")
      ->take_all()
      ->expected(1);
  add(enroll, RegisterModel);

  CLI::App* import = verb->add_subcommand("import",
                                          "upload calibrations or query moments; `register "
                                          "--calibration` makes them a model's defaults");
  import->add_option("FILE", flags->calibrations, "safetensors files")->required();
  add(import, ImportCalibrations);

  CLI::App* observe = verb->add_subcommand(
      "observe", "count queries of cache files: the model's calibration learned as it runs");
  observe->add_option("CACHE", flags->calibrations, "cache files with q_window")->required();
  observe->add_option("--name", flags->name, "the model's id (default: the files describe it)")
      ->type_name("ID");
  add(observe, ObserveCaches);

  CLI::App* keep =
      verb->add_subcommand("export", "write what was observed of a model's queries as a file");
  keep->add_option("NAME", flags->name, "the model's id")->required();
  keep->add_option("-o,--output", flags->output, "file to write")->type_name("FILE")->required();
  keep->add_option("--format", flags->format,
                   "calibration (for triattention; the default) or query-moments (for "
                   "expected_attention)")
      ->check(CLI::IsMember({"calibration", "query-moments"}).description(""))
      ->type_name("FORMAT");
  add(keep, ExportObserved);

  CLI::App* remove = verb->add_subcommand("delete", "forget a model");
  remove->add_option("NAME", flags->name, "its id")->required();
  add(remove, DeleteModel);
}

}  // namespace kvern::cli
