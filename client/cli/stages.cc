// Prints the registration tables of the server: what can be named in a policy.
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/cli/app.h"
#include "client/cli/errors.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kStagesExamples[] = R"(Examples:
  kvern stages
      everything
  kvern stages scorer
      one kind: budgeter, scorer, selector, codec or preset
  kvern stages snapkv
      one stage
  kvern stages --markdown
      tables for the documentation)";

constexpr const char* kKinds[] = {"budgeter", "scorer", "selector", "codec"};

struct StagesFlags {
  std::string only;
  bool markdown = false;
};

std::string ShapeClasses(const v1::StageInfo& stage) {
  return absl::StrJoin(stage.shape_classes(), " ", [](std::string* out, int shape_class) {
    absl::StrAppend(out, "S", shape_class - v1::SHAPE_CLASS_S0);
  });
}

std::string ParamText(const v1::StageParam& param) {
  return absl::StrCat(param.name(), "=", param.default_value());
}

bool Wanted(const StagesFlags& flags, const std::string& kind, const std::string& name) {
  return flags.only.empty() || flags.only == kind || flags.only == name;
}

void PrintStage(const v1::StageInfo& stage, const Console& console) {
  console.out << "\n" << Bold(console, stage.name()) << "\n";
  for (const std::string& line : WrapWords(stage.help(), console.width - 2)) {
    console.out << "  " << line << "\n";
  }
  TextTable table({});
  for (const v1::StageParam& param : stage.params()) {
    table.Add({absl::StrCat("  ", ParamText(param)), param.range(), param.help()});
  }
  table.Print(console);
  if (stage.inputs_size() > 0) {
    console.out << Dim(console, absl::StrCat("  needs ", absl::StrJoin(stage.inputs(), ", ")))
                << "\n";
  }
  if (stage.shape_classes_size() > 0) {
    console.out << Dim(console, absl::StrCat("  shape classes ", ShapeClasses(stage))) << "\n";
  }
}

void PrintPreset(const v1::PresetInfo& preset, const Console& console) {
  console.out << "\n" << Bold(console, preset.name()) << "\n";
  TextTable table({});
  table.Add({"  what", preset.help()});
  table.Add({"  with layer_sensitivity", preset.calibrated()});
  table.Add({"  without", preset.uncalibrated()});
  table.Print(console);
}

void PrintMarkdown(const v1::ListStagesResponse& response, const StagesFlags& flags,
                   const Console& console) {
  for (const char* kind : kKinds) {
    TextTable table({kind, "what", "parameters (default; range)", "needs", "shape classes"});
    for (const v1::StageInfo& stage : response.stages()) {
      if (stage.kind() != kind || !Wanted(flags, kind, stage.name())) continue;
      const std::string params =
          absl::StrJoin(stage.params(), "<br>", [](std::string* out, const v1::StageParam& param) {
            absl::StrAppend(out, "`", ParamText(param), "` (", param.range(), "): ", param.help());
          });
      table.Add({absl::StrCat("`", stage.name(), "`"), stage.help(), params,
                 absl::StrJoin(stage.inputs(), ", "), ShapeClasses(stage)});
    }
    if (!table.Empty()) console.out << table.Markdown() << "\n";
  }
  TextTable presets({"preset", "what", "with layer_sensitivity", "without"});
  for (const v1::PresetInfo& preset : response.presets()) {
    if (!Wanted(flags, "preset", preset.name())) continue;
    presets.Add({absl::StrCat("`", preset.name(), "`"), preset.help(),
                 absl::StrCat("`", preset.calibrated(), "`"),
                 absl::StrCat("`", preset.uncalibrated(), "`")});
  }
  if (!presets.Empty()) console.out << presets.Markdown();
}

void PrintTables(const v1::ListStagesResponse& response, const StagesFlags& flags,
                 const Console& console) {
  for (const char* kind : kKinds) {
    bool titled = false;
    for (const v1::StageInfo& stage : response.stages()) {
      if (stage.kind() != kind || !Wanted(flags, kind, stage.name())) continue;
      if (!titled) console.out << "\n" << Bold(console, absl::StrCat("== ", kind, "s ==")) << "\n";
      titled = true;
      PrintStage(stage, console);
    }
  }
  bool titled = false;
  for (const v1::PresetInfo& preset : response.presets()) {
    if (!Wanted(flags, "preset", preset.name())) continue;
    if (!titled) console.out << "\n" << Bold(console, "== presets ==") << "\n";
    titled = true;
    PrintPreset(preset, console);
  }
}

bool Knows(const v1::ListStagesResponse& response, const StagesFlags& flags) {
  for (const v1::StageInfo& stage : response.stages()) {
    if (Wanted(flags, stage.kind(), stage.name())) return true;
  }
  for (const v1::PresetInfo& preset : response.presets()) {
    if (Wanted(flags, "preset", preset.name())) return true;
  }
  return false;
}

absl::Status RunStages(const StagesFlags& flags, const GlobalFlags& globals,
                       const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const v1::ListStagesResponse response, session.Client().ListStages());
  if (!Knows(response, flags)) {
    return UsageError(absl::StrCat("stages: got '", flags.only,
                                   "', want budgeter, scorer, selector, codec, preset or the name "
                                   "of one of them"));
  }
  if (globals.json) {
    PrintJson(console, ToJson(response));
  } else if (flags.markdown) {
    PrintMarkdown(response, flags, console);
  } else {
    PrintTables(response, flags, console);
  }
  return absl::OkStatus();
}

}  // namespace

void AddStages(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb =
      app->add_subcommand("stages", "scorers, selectors, budgeters, codecs and presets in full");
  verb->footer(kStagesExamples);
  const auto flags = std::make_shared<StagesFlags>();
  verb->add_option("ONLY", flags->only, "a kind, or the name of a stage or preset");
  verb->add_flag("--markdown", flags->markdown, "print Markdown tables");
  commands->push_back({verb, [flags, globals](const Console& console) {
                         return RunStages(*flags, *globals, console);
                       }});
}

}  // namespace kvern::cli
