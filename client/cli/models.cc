// Models the server knows, and calibrations it holds.
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "client/cpp/cache_model.h"
#include "client/cpp/upload.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kModelsExamples[] = R"(Examples:
  kvern models list
  kvern models register chat.safetensors --name smollm2 --calibration moments.safetensors
      the geometry comes from the cache file; calibrations become the model's defaults
  kvern models import calibration.safetensors moments.safetensors
  kvern models delete smollm2)";

struct ModelFlags {
  std::string input;
  std::string name;
  std::vector<std::string> calibrations;
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

  CLI::App* remove = verb->add_subcommand("delete", "forget a model");
  remove->add_option("NAME", flags->name, "its id")->required();
  add(remove, DeleteModel);
}

}  // namespace kvern::cli
