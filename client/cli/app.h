// The program `kvern`: verbs, global flags, exit codes.
#ifndef KVERN_CLIENT_CLI_APP_H_
#define KVERN_CLIENT_CLI_APP_H_

#include <functional>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/status/status.h"
#include "client/cli/console.h"
#include "client/cli/session.h"

namespace kvern::cli {

// One verb: its place in the grammar, and what it does when chosen.
struct Command {
  CLI::App* app = nullptr;
  std::function<absl::Status(const Console&)> run;
};
using Commands = std::vector<Command>;

// Each adds its verb below `app`; `globals` outlives the commands and is filled by parsing.
void AddCompress(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddPlan(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddInspect(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddUnpack(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddStages(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddModels(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddPools(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddStore(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddInfo(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddPing(CLI::App* app, const GlobalFlags* globals, Commands* commands);
void AddBench(CLI::App* app, const GlobalFlags* globals, Commands* commands);

// Parses and runs; `arguments` without the program's name. Returns the exit code.
int Run(const std::vector<std::string>& arguments, const Console& console);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_APP_H_
