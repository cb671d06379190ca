// Sequences that live in the server's own memory.
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "client/cpp/cache_model.h"
#include "client/cpp/proto_types.h"
#include "client/cpp/stored_file.h"
#include "client/cpp/upload.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kStoreExamples[] = R"(Examples:
  kvern store put chat.safetensors --name chat-1
  kvern store list
  kvern store get chat-1 -o chat.safetensors --decode
      packed sequences come as k and v; without --decode as they are stored
  kvern store delete chat-1)";

struct StoreFlags {
  std::string name;
  std::string file;
  bool decode = false;
};

std::string SequenceName(const std::string& name) {
  return absl::StartsWith(name, "sequences/") ? name : absl::StrCat("sequences/", name);
}

absl::Status List(const StoreFlags&, const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_ASSIGN_OR_RETURN(const v1::ListSequencesResponse response,
                         session.Client().ListSequences());
  if (globals.json) {
    PrintJson(console, ToJson(response));
    return absl::OkStatus();
  }
  TextTable table({"sequence", "model", "tokens", "logical", "epoch", "k", "v", "size", ""});
  for (const v1::StoredSequence& stored : response.sequences()) {
    table.Add({stored.name(), stored.model(), absl::StrCat(stored.num_tokens()),
               absl::StrCat(stored.num_logical_tokens()), absl::StrCat(stored.epoch()),
               stored.k_codec(), stored.v_codec(), HumanBytes(stored.stored_bytes()),
               stored.released() ? "released" : ""});
  }
  if (!table.Empty()) table.Print(console);
  console.out << HumanBytes(response.used_bytes()) << " of "
              << HumanBytes(response.capacity_bytes()) << " in use\n";
  return absl::OkStatus();
}

absl::Status Put(const StoreFlags& flags, const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const client::CacheFile cache, client::CacheFile::Open(flags.file));
  if (cache.Packed()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", flags.file, "' is packed, want k and v: decode it with `kvern unpack`"));
  }
  KVERN_ASSIGN_OR_RETURN(const v1::Model described, ModelOf(cache));
  KVERN_ASSIGN_OR_RETURN(const Session session,
                         Session::Open(globals, 2 * cache.Shape().PlaneBytes()));
  KVERN_ASSIGN_OR_RETURN(const v1::Model model, FindOrRegisterModel(session.Client(), described));
  v1::StoredSequence header;
  header.set_name(SequenceName(flags.name));
  header.set_model(model.name());
  const std::vector<int32_t> layers = cache.LayerIndices();
  header.mutable_layer_indices()->Assign(layers.begin(), layers.end());
  header.set_dtype(client::ToProto(cache.Shape().dtype));
  header.set_num_logical_tokens(cache.LogicalTokens());
  if (cache.Contents().Find("positions") != nullptr) {
    *header.mutable_positions() = cache.Positions();
  }
  KVERN_ASSIGN_OR_RETURN(
      const v1::StoredSequence stored,
      PutSequence(session.Client(), header, {cache.K(), cache.V(), cache.Shape().tokens},
                  ProgressLine(console, "cache")));
  if (globals.json) {
    PrintJson(console, ToJson(stored));
  } else {
    console.out << stored.name() << ": " << stored.num_tokens() << " tokens, "
                << HumanBytes(stored.stored_bytes()) << "\n";
  }
  return absl::OkStatus();
}

absl::Status Get(const StoreFlags& flags, const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  const auto form = flags.decode ? client::FetchForm::kDecoded : client::FetchForm::kAsStored;
  KVERN_ASSIGN_OR_RETURN(const client::FetchedSequence fetched,
                         FetchSequence(session.Client(), SequenceName(flags.name), form,
                                       ProgressLine(console, "cache")));
  KVERN_ASSIGN_OR_RETURN(const v1::Model model,
                         session.Client().GetModel(fetched.header.sequence().model()));
  KVERN_RETURN_IF_ERROR(
      WriteFetchedFile(flags.file, model, fetched, ProgressLine(console, "writing")));
  if (globals.json) {
    PrintJson(console, ToJson(fetched.header));
  } else {
    console.out << "wrote " << flags.file << "\n";
  }
  return absl::OkStatus();
}

absl::Status Delete(const StoreFlags& flags, const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const Session session, Session::Open(globals));
  KVERN_RETURN_IF_ERROR(session.Client().DeleteSequence(SequenceName(flags.name)));
  if (globals.json) {
    PrintJson(console, {{"deleted", SequenceName(flags.name)}});
  } else {
    console.out << "deleted " << SequenceName(flags.name) << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddStore(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("store", "sequences that live in the server's memory");
  verb->footer(kStoreExamples);
  verb->require_subcommand(0, 1);
  const auto flags = std::make_shared<StoreFlags>();
  const auto add = [=](CLI::App* chosen, auto run) {
    commands->push_back({chosen, [flags, globals, run](const Console& console) {
                           return run(*flags, *globals, console);
                         }});
  };
  add(verb, List);
  add(verb->add_subcommand("list", "all sequences (the default)"), List);

  CLI::App* put = verb->add_subcommand("put", "store a cache file");
  put->add_option("CACHE", flags->file, "cache file")->required();
  put->add_option("--name", flags->name, "its id")->required()->type_name("ID");
  add(put, Put);

  CLI::App* get = verb->add_subcommand("get", "write a stored sequence to a file");
  get->add_option("NAME", flags->name, "its id")->required();
  get->add_option("-o,--output", flags->file, "cache file")->required()->type_name("OUT");
  get->add_flag("--decode", flags->decode, "decode packed blocks to k and v");
  add(get, Get);

  CLI::App* remove = verb->add_subcommand("delete", "free a stored sequence");
  remove->add_option("NAME", flags->name, "its id")->required();
  add(remove, Delete);
}

}  // namespace kvern::cli
