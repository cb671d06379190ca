// Paged pools that frontends have registered.
#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "client/cpp/proto_types.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kPoolsExamples[] = R"(Examples:
  kvern pools list
A pool ends with the process that registered it.)";

absl::Status ListPools(const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const v1::ListPoolsResponse response, session.Client().ListPools());
  if (globals.json) {
    PrintJson(console, ToJson(response));
    return absl::OkStatus();
  }
  TextTable table({"pool", "model", "layers", "blocks", "tokens each", "dtype", "access"});
  for (const v1::Pool& pool : response.pools()) {
    const auto dtype = client::FromProto(pool.dtype());
    table.Add({pool.name(), pool.model(), absl::StrCat(pool.layers_size()),
               absl::StrCat(pool.num_blocks()), absl::StrCat(pool.block_tokens()),
               dtype.has_value() ? Name(*dtype) : "?",
               pool.read_only() ? "read only" : "read, write"});
  }
  if (table.Empty()) {
    console.out << "no pools\n";
  } else {
    table.Print(console);
  }
  return absl::OkStatus();
}

}  // namespace

void AddPools(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("pools", "paged pools that frontends have registered");
  verb->footer(kPoolsExamples);
  verb->require_subcommand(0, 1);
  const auto list = [globals](const Console& console) { return ListPools(*globals, console); };
  commands->push_back({verb, list});
  commands->push_back({verb->add_subcommand("list", "all pools (the default)"), list});
}

}  // namespace kvern::cli
