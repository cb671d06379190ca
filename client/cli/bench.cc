// Measures ops of the cpu backend in this process, each beside a stream read of the same keys.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/app.h"
#include "client/cli/bench/ops.h"
#include "client/cli/errors.h"
#include "client/cli/message_json.h"
#include "client/cli/text_table.h"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kBenchExamples[] = R"(Examples:
  kvern bench --op list
      what can be measured
  kvern bench --op score:triattention --q-heads 32
      one op, four query heads per KV head
  kvern bench --op all --threads 2 --json
      every op; the fields are in docs/performance.md
  kvern bench --op encode:lm4 --tokens 4096 --instruction-set avx2
      a shorter sequence, an instruction set of your choice

A stream read is one pass over the keys that only adds: what this memory can do at this minute.)";

constexpr int64_t kMaxKeyBytes = int64_t{4} << 30;

struct BenchFlags {
  std::string op;
  int64_t tokens = 32768;
  int64_t kv_heads = 8;
  int64_t q_heads = 8;
  int64_t head_dim = 128;
  std::string dtype = "bf16";
  int64_t rounds = 9;
};

// What was measured of one op.
struct Measured {
  const bench::Op* op = nullptr;
  int64_t floor_bytes = 0;
  std::vector<bench::Round> rounds;

  template <class Fn>
  bench::Quantiles Over(Fn figure) const {
    std::vector<double> values;
    for (const bench::Round& round : rounds) values.push_back(figure(round));
    return bench::QuantilesOf(std::move(values));
  }
  bench::Quantiles StreamReads() const {
    return Over([](const bench::Round& round) { return round.StreamReads(); });
  }
  bench::Quantiles StreamReadsCpu() const {
    return Over([](const bench::Round& round) { return round.StreamReadsCpu(); });
  }
  bench::Quantiles Millis() const {
    return Over([](const bench::Round& round) { return round.op.wall * 1e3; });
  }
  double GbPerSecond() const { return static_cast<double>(floor_bytes) / Millis().median / 1e6; }
  // 1: the op costs nothing but its memory traffic.
  double ShareOfFloor(int64_t read_bytes) const {
    return static_cast<double>(floor_bytes) / static_cast<double>(read_bytes) /
           StreamReads().median;
  }
};

struct Report {
  bench::Shape shape;
  int64_t q_heads = 0;
  std::string backend;
  std::string instruction_set;
  int threads = 0;
  int64_t read_bytes = 0;
  std::vector<Measured> ops;

  bench::Quantiles ReadMillis() const {
    std::vector<double> millis;
    for (const Measured& measured : ops) {
      for (const bench::Round& round : measured.rounds) millis.push_back(round.read.wall * 1e3);
    }
    return bench::QuantilesOf(std::move(millis));
  }
  double ReadGbPerSecond() const {
    return static_cast<double>(read_bytes) / ReadMillis().median / 1e6;
  }
};

absl::Status WantRange(const char* flag, int64_t got, int64_t least, int64_t most) {
  if (got >= least && got <= most) return absl::OkStatus();
  return UsageError(absl::StrCat(flag, ": got ", got, ", want ", least, " to ", most));
}

absl::StatusOr<DType> DTypeOf(const std::string& name) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (name == Name(dtype)) return dtype;
  }
  return UsageError(absl::StrCat("--dtype: got '", name, "', want bf16, f16 or f32"));
}

absl::StatusOr<bench::Shape> ShapeOf(const BenchFlags& flags) {
  KVERN_RETURN_IF_ERROR(WantRange("--tokens", flags.tokens, 64, int64_t{1} << 24));
  KVERN_RETURN_IF_ERROR(WantRange("--kv-heads", flags.kv_heads, 1, 1024));
  KVERN_RETURN_IF_ERROR(WantRange("--q-heads", flags.q_heads, 1, 8192));
  KVERN_RETURN_IF_ERROR(WantRange("--head-dim", flags.head_dim, 16, 512));
  KVERN_RETURN_IF_ERROR(WantRange("--rounds", flags.rounds, 1, 100000));
  if (flags.q_heads % flags.kv_heads != 0) {
    return UsageError(absl::StrCat("--q-heads: got ", flags.q_heads,
                                   ", want a multiple of the kv_heads, ", flags.kv_heads));
  }
  if (flags.head_dim % 16 != 0) {
    return UsageError(absl::StrCat("--head-dim: got ", flags.head_dim, ", want a multiple of 16"));
  }
  KVERN_ASSIGN_OR_RETURN(const DType dtype, DTypeOf(flags.dtype));
  const bench::Shape shape = {flags.tokens, flags.kv_heads, flags.head_dim, dtype};
  if (shape.KeyBytes() > kMaxKeyBytes) {
    return UsageError(absl::StrCat("--tokens, --kv-heads, --head-dim: got keys of ",
                                   HumanBytes(shape.KeyBytes()), ", want at most ",
                                   HumanBytes(kMaxKeyBytes)));
  }
  return shape;
}

absl::StatusOr<std::vector<const bench::Op*>> OpsOf(const std::string& name) {
  std::vector<const bench::Op*> ops;
  std::vector<std::string> known;
  for (const bench::Op& op : bench::Ops()) {
    known.push_back(op.name);
    if (name == "all" || name == op.name) ops.push_back(&op);
  }
  if (!ops.empty()) return ops;
  return UsageError(
      absl::StrCat("--op: got '", name, "', want list, all, ", absl::StrJoin(known, ", ")));
}

absl::StatusOr<std::unique_ptr<Backend>> BackendOf(const GlobalFlags& globals) {
  if (!globals.server.empty()) {
    return UsageError("--server: got one, want none: ops are measured in this process");
  }
  BackendOptions options;
  options.name = globals.backend.empty() || globals.backend == "auto" ? "cpu" : globals.backend;
  if (options.name != "cpu" && options.name != "ref") {
    return UsageError(absl::StrCat("--backend: got ", options.name, ", want cpu or ref"));
  }
  KVERN_RETURN_IF_ERROR(WantRange("--threads", globals.threads, 0, 1024));
  if (!globals.instruction_set.empty()) options.instruction_set = globals.instruction_set;
  options.threads = std::max(1, globals.threads);
  return MakeBackend(options);
}

void Progress(const Console& console, const std::string& text) {
  if (console.progress) console.err << "\r\033[K" << text << std::flush;
}

absl::StatusOr<Measured> Measure(const bench::Op& op, const bench::Setting& setting,
                                 bench::StreamRead& read, int64_t rounds, const Console& console) {
  Progress(console, absl::StrCat(op.name, ": inputs"));
  KVERN_ASSIGN_OR_RETURN(const bench::PreparedOp prepared, op.prepare(setting));
  Measured measured = {&op, prepared.floor_bytes, {}};
  for (int64_t round = 0; round < rounds; ++round) {
    Progress(console, absl::StrCat(op.name, ": round ", round + 1, " of ", rounds));
    KVERN_ASSIGN_OR_RETURN(measured.rounds.emplace_back(), bench::MeasureRound(read, prepared.run));
  }
  Progress(console, "");
  return measured;
}

nlohmann::ordered_json ToJson(const bench::Quantiles& quantiles) {
  return {{"median", quantiles.median}, {"p10", quantiles.p10}, {"p90", quantiles.p90}};
}

nlohmann::ordered_json ToJson(const Report& report) {
  nlohmann::ordered_json json = {{"backend", report.backend},
                                 {"instruction_set", report.instruction_set},
                                 {"threads", report.threads}};
  json["shape"] = {{"layers", 1},
                   {"kv_heads", report.shape.kv_heads},
                   {"q_heads", report.q_heads},
                   {"tokens", report.shape.tokens},
                   {"head_dim", report.shape.head_dim},
                   {"dtype", Name(report.shape.dtype)},
                   {"block_tokens", bench::kBlockTokens}};
  json["stream_read"] = {{"bytes", report.read_bytes},
                         {"ms", ToJson(report.ReadMillis())},
                         {"gb_per_s", report.ReadGbPerSecond()}};
  json["ops"] = nlohmann::ordered_json::array();
  for (const Measured& measured : report.ops) {
    json["ops"].push_back({{"op", measured.op->name},
                           {"help", measured.op->help},
                           {"rounds", measured.rounds.size()},
                           {"stream_reads", ToJson(measured.StreamReads())},
                           {"stream_reads_cpu", ToJson(measured.StreamReadsCpu())},
                           {"ms", ToJson(measured.Millis())},
                           {"floor_bytes", measured.floor_bytes},
                           {"gb_per_s", measured.GbPerSecond()},
                           {"share_of_floor", measured.ShareOfFloor(report.read_bytes)},
                           {"tokens_per_s", 1e3 * static_cast<double>(report.shape.tokens) /
                                                measured.Millis().median}});
  }
  return json;
}

void Print(const Report& report, const Console& console) {
  const bench::Shape& shape = report.shape;
  console.out << absl::StrFormat(
      "%d kv_heads x %d tokens x %d dims, %s, %d q_heads; %s, %s, %d thread%s; stream read of %s: "
      "%.2f ms, %.1f GB/s\n\n",
      shape.kv_heads, shape.tokens, shape.head_dim, Name(shape.dtype), report.q_heads,
      report.backend, report.instruction_set, report.threads, report.threads == 1 ? "" : "s",
      HumanBytes(report.read_bytes), report.ReadMillis().median, report.ReadGbPerSecond());
  TextTable table({"op", "stream reads", "p10", "p90", "CPU time", "ms", "GB/s", "of floor"});
  for (const Measured& measured : report.ops) {
    const bench::Quantiles reads = measured.StreamReads();
    table.Add({measured.op->name, absl::StrFormat("%.2f", reads.median),
               absl::StrFormat("%.2f", reads.p10), absl::StrFormat("%.2f", reads.p90),
               absl::StrFormat("%.2f", measured.StreamReadsCpu().median),
               absl::StrFormat("%.2f", measured.Millis().median),
               absl::StrFormat("%.2f", measured.GbPerSecond()),
               absl::StrFormat("%.0f %%", 100 * measured.ShareOfFloor(report.read_bytes))});
  }
  table.Print(console);
}

void List(const GlobalFlags& globals, const Console& console) {
  if (globals.json) {
    nlohmann::ordered_json json = {{"ops", nlohmann::ordered_json::array()}};
    for (const bench::Op& op : bench::Ops()) {
      json["ops"].push_back({{"op", op.name}, {"help", op.help}});
    }
    return PrintJson(console, json);
  }
  TextTable table({"op", "what"});
  for (const bench::Op& op : bench::Ops()) table.Add({op.name, op.help});
  table.Print(console);
}

absl::Status RunBench(const BenchFlags& flags, const GlobalFlags& globals, const Console& console) {
  KVERN_ASSIGN_OR_RETURN(const bench::Shape shape, ShapeOf(flags));
  KVERN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, BackendOf(globals));
  if (flags.op == "list") {
    List(globals, console);
    return absl::OkStatus();
  }
  KVERN_ASSIGN_OR_RETURN(const auto ops, OpsOf(flags.op));
  Progress(console, "making keys and values");
  bench::Layer layer(shape);
  const int threads = std::max(1, globals.threads);
  bench::StreamRead read(layer.keys.memory().first(shape.KeyBytes()), threads);
  Report report = {.shape = shape,
                   .q_heads = flags.q_heads,
                   .backend = std::string(backend->Name()),
                   .instruction_set = std::string(backend->InstructionSet()),
                   .threads = threads,
                   .read_bytes = read.Bytes(),
                   .ops = {}};
  const bench::Setting setting = {&layer, backend.get(), flags.q_heads};
  for (const bench::Op* op : ops) {
    KVERN_ASSIGN_OR_RETURN(report.ops.emplace_back(),
                           Measure(*op, setting, read, flags.rounds, console));
  }
  if (globals.json) {
    PrintJson(console, ToJson(report));
  } else {
    Print(report, console);
  }
  return absl::OkStatus();
}

}  // namespace

void AddBench(CLI::App* app, const GlobalFlags* globals, Commands* commands) {
  CLI::App* verb =
      app->add_subcommand("bench", "measure ops of this processor beside what its memory delivers");
  verb->footer(kBenchExamples);
  const auto flags = std::make_shared<BenchFlags>();
  const auto add = [verb](const char* name, auto& value, const char* help, const char* type) {
    return verb->add_option(name, value, help)->type_name(type);
  };
  add("--op", flags->op, "one of --op list, or all", "NAME")->required();
  add("--tokens", flags->tokens, "of the sequence (default 32768)", "N");
  add("--kv-heads", flags->kv_heads, "of the layer (default 8)", "N");
  add("--q-heads", flags->q_heads, "a multiple of the KV heads (default 8)", "N");
  add("--head-dim", flags->head_dim, "a multiple of 16 (default 128)", "N");
  add("--dtype", flags->dtype, "bf16, f16 or f32 (default bf16)", "NAME");
  add("--rounds", flags->rounds, "of which median, p10 and p90 are shown (default 9)", "N");
  commands->push_back({verb, [flags, globals](const Console& console) {
                         return RunBench(*flags, *globals, console);
                       }});
}

}  // namespace kvern::cli
