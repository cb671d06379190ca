// Asks whether the server serves: exit code 0 or 3, fit for a container's health check.
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/app.h"
#include "client/cli/message_json.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kPingExamples[] = R"(Examples:
  kvern ping --timeout 2s
      exit code 0: serving; 3: not reachable or draining
  kvern ping --server 127.0.0.1:9463)";

absl::Status RunPing(const GlobalFlags& globals, const Console& console) {
  const absl::Time start = absl::Now();
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_RETURN_IF_ERROR(session.Client().Ping());
  const int64_t micros = absl::ToInt64Microseconds(absl::Now() - start);
  if (globals.json) {
    PrintJson(
        console,
        {{"serving", true}, {"server", session.Client().Address()}, {"round_trip_us", micros}});
  } else {
    console.out << "serving: " << session.Client().Address() << " (" << HumanMicros(micros)
                << ")\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddPing(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("ping", "ask whether the server serves");
  verb->footer(kPingExamples);
  commands->push_back(
      {verb, [globals](const Console& console) { return RunPing(*globals, console); }});
}

}  // namespace kvern::cli
