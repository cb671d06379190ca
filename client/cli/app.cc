// CLI11 throws and is caught here; beyond this file there are statuses only.
#include "client/cli/app.h"

#include <algorithm>
#include <utility>

#include "CLI/Config.hpp"
#include "CLI/Formatter.hpp"
#include "absl/strings/str_cat.h"
#include "client/cli/errors.h"
#include "server/main/version.h"

namespace kvern::cli {
namespace {

constexpr char kExamples[] = R"(Examples:
  kvern compress chat.safetensors -o small.safetensors --local
      compress a cache without a server, with the default policy
  kvern plan chat.safetensors --policy safe
      see budgets and bytes before anything moves
  kvern inspect small.safetensors
      draw which tokens each layer and head kept
  kvern stages
      every scorer, selector, budgeter, codec and preset with its parameters

Exit codes: 0 ok, 1 refused, 2 usage, 3 server not reachable.)";

// Which flags exclude which is told by an error; in help it drowns what they do.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    std::string text = absl::StrCat(" ", option->get_type_name());
    if (option->get_type_size() == 0) text.clear();
    if (option->get_required()) absl::StrAppend(&text, " (required)");
    return text;
  }
};

// The deepest chosen verb that does something: `kvern store` lists, `kvern store put` puts.
const Command* Chosen(const Commands& commands) {
  const Command* chosen = nullptr;
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const bool deeper = chosen == nullptr || command.app->get_parent() == chosen->app;
    if (deeper) chosen = &command;
  }
  return chosen;
}

}  // namespace

int Run(const std::vector<std::string>& arguments, const Console& console) {
  CLI::App app(
      "kvern compresses KV caches: scores cached tokens, keeps the ones worth their bytes.",
      "kvern");
  app.footer(kExamples);
  app.set_version_flag("--version", absl::StrCat("kvern ", Version(), " (", Commit(), ")"));
  app.fallthrough();
  app.require_subcommand(1);
  app.formatter(std::make_shared<HelpFormatter>());
  app.get_formatter()->column_width(34);
  GlobalFlags globals;
  AddGlobalFlags(&app, &globals);
  Commands commands;
  for (const auto add : {AddCompress, AddPlan, AddInspect, AddUnpack, AddStages, AddModels,
                         AddPools, AddStore, AddInfo, AddPing, AddBench}) {
    add(&app, &globals, &commands);
  }
  try {
    // CLI11 takes arguments from the back.
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::Success& help) {
    return app.exit(help, console.out, console.err);
  } catch (const CLI::ParseError& error) {
    console.err << ErrorText(UsageError(error.what()));
    return kExitUsage;
  }
  const Command* chosen = Chosen(commands);
  if (chosen == nullptr) {
    console.err << ErrorText(UsageError("want a verb"));
    return kExitUsage;
  }
  const absl::Status status = chosen->run(console);
  if (!status.ok()) console.err << ErrorText(status);
  console.out << std::flush;
  return ExitCode(status);
}

}  // namespace kvern::cli
