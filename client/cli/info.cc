// Version, backend and limits of the server.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kInfoExamples[] = R"(Examples:
  kvern info
  kvern info --json --local
Each limit is a flag of kvernd of the same name.)";

void AddDevice(const v1::Device& device, TextTable* facts) {
  facts->Add({"device", absl::StrCat(device.name(), ", ", device.uuid(), ", CUDA ", device.driver(),
                                     device.healthy() ? "" : ", LOST: restart kvernd")});
  facts->Add({"memory", absl::StrCat(HumanBytes(device.reserved_bytes()), " reserved of ",
                                     HumanBytes(device.memory_bytes()))});
  facts->Add({"busy for", absl::FormatDuration(absl::Seconds(device.busy_seconds()))});
}

absl::Status RunInfo(const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse info, session.Client().GetServerInfo());
  const nlohmann::ordered_json json = ToJson(info);
  if (globals.json) {
    PrintJson(console, json);
    return absl::OkStatus();
  }
  TextTable facts({});
  facts.Add({"server", session.Client().Address()});
  facts.Add({"version", absl::StrCat("v", info.version(), " (", info.commit(), ")")});
  facts.Add({"backend", absl::StrCat(info.backend(), ", ", info.instruction_set(), ", ",
                                     info.threads(), " threads")});
  if (!info.backend_reason().empty()) facts.Add({"chosen", info.backend_reason()});
  if (info.has_device()) AddDevice(info.device(), &facts);
  facts.Add({"up for", info.uptime_seconds() == 0
                           ? "less than a second"
                           : absl::FormatDuration(absl::Seconds(info.uptime_seconds()))});
  facts.Add({"broker", info.broker_address().empty() ? "none" : info.broker_address()});
  facts.Print(console);
  TextTable limits({"limit", "value", ""});
  for (const auto& [name, value] : json["limits"].items()) {
    const int64_t number = value.get<int64_t>();
    limits.Add(
        {name, absl::StrCat(number), absl::EndsWith(name, "bytes") ? HumanBytes(number) : ""});
  }
  console.out << "\n";
  limits.Print(console);
  return absl::OkStatus();
}

}  // namespace

void AddInfo(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("info", "version, backend, device and limits of the server");
  verb->footer(kInfoExamples);
  commands->push_back(
      {verb, [globals](const Console& console) { return RunInfo(*globals, console); }});
}

}  // namespace kvern::cli
