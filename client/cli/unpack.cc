// Decodes a packed result in this process: no server has to hold the model.
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "client/cli/app.h"
#include "client/cli/errors.h"
#include "client/cli/message_json.h"
#include "client/cpp/cache_file.h"
#include "client/cpp/cache_model.h"
#include "client/cpp/proto_types.h"
#include "kernels/base/status_macros.h"
#include "server/main/unpack_file.h"

namespace kvern::cli {
namespace {

constexpr char kUnpackExamples[] = R"(Examples:
  kvern unpack small.safetensors -o dense.safetensors
      k and v again, at the dtype the cache had; decoding runs in this process)";

struct UnpackFlags {
  std::string input;
  std::string output;
};

std::span<const std::byte> AsBytes(const std::vector<std::byte>& values) { return values; }

PackedCache Describe(const client::CacheFile& cache, const v1::ModelSpec& spec) {
  const client::CacheShape& shape = cache.Shape();
  PackedCache packed;
  packed.layers = shape.layers;
  packed.kv_heads = shape.kv_heads;
  packed.tokens = shape.tokens;
  packed.head_dim = shape.head_dim;
  packed.dtype = shape.dtype;
  packed.rope_layout = spec.rope().layout() == v1::ROPE_LAYOUT_INTERLEAVED
                           ? RopeLayout::kInterleaved
                           : RopeLayout::kHalf;
  packed.inv_freq.assign(spec.rope().inv_freq().begin(), spec.rope().inv_freq().end());
  packed.blocks = cache.BytesOf("packed");
  packed.table = cache.BytesOf("packed_table");
  packed.mean_key = cache.BytesOf("packed_mu");
  packed.positions = cache.Ints("positions");
  return packed;
}

absl::Status RunUnpack(const UnpackFlags& flags, const GlobalFlags& globals,
                       const Console& console) {
  GlobalFlags here = globals;
  here.local = true;
  KVERN_ASSIGN_OR_RETURN(const BackendOptions backend, LocalBackend(here));
  KVERN_ASSIGN_OR_RETURN(const client::CacheFile cache, client::CacheFile::Open(flags.input));
  if (!cache.Packed()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", flags.input, "' has k and v already, want a packed file"));
  }
  KVERN_ASSIGN_OR_RETURN(const v1::Model model, ModelOf(cache));
  KVERN_ASSIGN_OR_RETURN(const DenseKv dense, Unpack(backend, Describe(cache, model.spec())));
  const client::CacheShape& shape = cache.Shape();
  formats::Safetensors file = cache.Contents();
  for (const char* name : {"packed", "packed_table", "packed_mu"}) file.tensors.erase(name);
  const std::vector<int64_t> extent = {shape.layers, shape.kv_heads, shape.tokens, shape.head_dim};
  file.tensors["k"] = {client::FileDType(shape.dtype), extent, AsBytes(dense.k)};
  file.tensors["v"] = {client::FileDType(shape.dtype), extent, AsBytes(dense.v)};
  KVERN_RETURN_IF_ERROR(
      client::WriteSafetensorsFile(flags.output, file, ProgressLine(console, "writing")));
  const int64_t packed_bytes = std::ssize(cache.BytesOf("packed"));
  if (globals.json) {
    PrintJson(console, {{"input", flags.input},
                        {"output", flags.output},
                        {"packed_bytes", packed_bytes},
                        {"dense_bytes", 2 * shape.PlaneBytes()}});
  } else {
    console.out << "wrote " << flags.output << ": " << HumanBytes(packed_bytes) << " packed -> "
                << HumanBytes(2 * shape.PlaneBytes()) << " of k and v\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddUnpack(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb = app->add_subcommand("unpack", "decode a packed result to k and v");
  verb->footer(kUnpackExamples);
  const auto flags = std::make_shared<UnpackFlags>();
  verb->add_option("PACKED", flags->input, "result file of a codec that packs")->required();
  verb->add_option("-o,--output", flags->output, "cache file")->required()->type_name("OUT");
  commands->push_back({verb, [flags, globals](const Console& console) {
                         return RunUnpack(*flags, *globals, console);
                       }});
}

}  // namespace kvern::cli
