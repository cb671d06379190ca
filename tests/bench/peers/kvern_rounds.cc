// One op per line of input, timed: a driver lets it and another program take turns on one machine.
//
//   kvern_rounds --inputs DIR --threads N     (files of DIR: inputs.py)
//   read               one stream read of the keys -> "WALL CPU", nanoseconds
//   run NAME           the op once                 -> "WALL CPU"
//   check NAME FILE    the op once, its answer to FILE: scores f32 [kv_heads, tokens], kept tokens
//                      i32 [kv_heads, 2048], or decoded rows f32 [kv_heads, tokens, head_dim]
//                                                  -> "ok BYTES", the bytes of the packed form or 0
// What fails answers "error: ..." and the next line is read.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/cli/bench/layer.h"
#include "client/cli/bench/measure.h"
#include "kernels/backend.h"
#include "kernels/backends.h"
#include "kernels/base/packed_layout.h"
#include "kernels/base/status_macros.h"
#include "tests/support/packed_case.h"

namespace kvern::bench {
namespace {

constexpr int64_t kTokens = 32768;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int32_t kBands = kHeadDim / 2;
constexpr int32_t kRank = 8;
constexpr int32_t kWindow = 32;
constexpr int32_t kKept = 2048;

Layer& TheLayer() {
  static Layer& layer = *new Layer(Shape{kTokens, kKvHeads, kHeadDim, DType::kBF16});
  return layer;
}

struct Op {
  std::function<absl::Status(Backend&)> run;
  std::function<std::vector<float>()> answer = nullptr;  // of the last run; null: kept tokens
  std::shared_ptr<KeepList> kept = nullptr;
  int64_t packed_bytes = 0;
};

Backend& Sequential() {
  static Backend& backend = *MakeBackend({.name = "cpu", .threads = 1}).value().release();
  return backend;
}

// Whole file as T. A file of another size is an error of whoever made it: the program ends.
template <class T>
std::vector<T> Load(const std::filesystem::path& file, int64_t count) {
  std::vector<T> values(count);
  const auto bytes = static_cast<std::streamsize>(values.size() * sizeof(T));
  std::ifstream stream(file, std::ios::binary);
  stream.read(reinterpret_cast<char*>(values.data()), bytes);
  if (stream.gcount() != bytes || stream.peek() != std::ifstream::traits_type::eof()) {
    std::cerr << file << ": want " << bytes << " bytes\n";
    std::exit(1);
  }
  return values;
}

// Dense bf16 [kv_heads, tokens, head_dim] into the blocks of `kv`.
void Fill(const std::filesystem::path& file, const KvRef& rows) {
  const std::vector<uint16_t> dense = Load<uint16_t>(file, kKvHeads * kTokens * kHeadDim);
  for (int64_t head = 0; head < kKvHeads; ++head) {
    for (int64_t token = 0; token < kTokens; ++token) {
      std::memcpy(rows.Address(head, token), dense.data() + (head * kTokens + token) * kHeadDim,
                  kHeadDim * sizeof(uint16_t));
    }
  }
}

std::vector<float> Dense(const KvRef& rows) {
  std::vector<float> dense;
  dense.reserve(kKvHeads * kTokens * kHeadDim);
  for (int64_t head = 0; head < kKvHeads; ++head) {
    for (int64_t token = 0; token < kTokens; ++token) {
      const auto* row = reinterpret_cast<const BFloat16*>(rows.Address(head, token));
      for (int64_t d = 0; d < kHeadDim; ++d) dense.push_back(ToFloat(row[d]));
    }
  }
  return dense;
}

// Makes ops by name: "keydiff", "snapkv.g4", "encode.v.lm4", "decode.k.i8t+rm".
class Ops {
 public:
  explicit Ops(std::filesystem::path inputs) : inputs_(std::move(inputs)) {
    Fill(inputs_ / "keys.bf16", TheLayer().keys.refs()[0]);
    Fill(inputs_ / "values.bf16", TheLayer().values.refs()[0]);
    TheLayer().normals = Load<float>(inputs_ / "scores.f32", kKvHeads * kTokens);
    makers_["key_norm"] = [this] { return KeyNorm(); };
    makers_["keydiff"] = [this] { return KeyDiff(); };
    makers_["topk"] = [] { return TopK(); };
    for (const int group : {1, 4}) {
      const std::string suffix = absl::StrCat(".g", group);
      makers_["triattention" + suffix] = [=, this] { return TriAttention(group, true); };
      makers_["triattention_raw" + suffix] = [=, this] { return TriAttention(group, false); };
      makers_["expected_attention" + suffix] = [=, this] { return ExpectedAttention(group); };
      makers_["snapkv" + suffix] = [=, this] { return SnapKv(group); };
    }
    AddCodec("v.i8t", {CodecId::kI8t, 0}, Role::kValue);
    AddCodec("v.i4t", {CodecId::kI4t, 0}, Role::kValue);
    AddCodec("v.lm4", {CodecId::kLm4, kFlagHadamard}, Role::kValue);
    AddCodec("k.i8t+rm", {CodecId::kI8t, kFlagRopeMean}, Role::kKey);
    AddCodec("k.lm4+rm", {CodecId::kLm4, kFlagHadamard | kFlagRopeMean}, Role::kKey);
  }

  // Null: no op of that name.
  Op* Find(const std::string& name) {
    const auto made = ops_.find(name);
    if (made != ops_.end()) return &made->second;
    const auto maker = makers_.find(name);
    return maker == makers_.end() ? nullptr : &(ops_[name] = maker->second());
  }

 private:
  template <class T>
  std::shared_ptr<std::vector<T>> Shared(const std::string& name, int64_t count) const {
    return std::make_shared<std::vector<T>>(Load<T>(inputs_ / name, count));
  }
  ScoreView Out() { return DenseView(scores_.data(), int64_t{1}, kKvHeads, kTokens); }
  Op Scorer(std::function<absl::Status(Backend&)> run) {
    return {std::move(run), [this] { return scores_; }};
  }

  // As the scorer: a small norm is what is kept.
  Op KeyNorm() {
    return Scorer([this](Backend& backend) {
      const ScoreView scores = Out();
      KVERN_RETURN_IF_ERROR(backend.RowNorms(TheLayer().keys.refs(), scores));
      return backend.Scale(-1.0f, std::span(&scores, 1));
    });
  }

  // Keys as they lie in the cache, as the other program takes them.
  Op KeyDiff() {
    return Scorer([this](Backend& backend) {
      return backend.KeyDiff({TheLayer().keys.refs(), /*unrotate=*/nullptr, TheLayer().All()},
                             Out());
    });
  }

  Op TriAttention(int32_t group, bool zscore) {
    const auto q_heads = static_cast<int32_t>(group * kKvHeads);
    const auto u = Shared<float>(absl::StrCat("tri_u.g", group, ".f32"), q_heads * kHeadDim);
    const auto w = Shared<float>(absl::StrCat("tri_w.g", group, ".f32"), q_heads * kBands);
    return Scorer([=, this](Backend& backend) {
      TriAttentionArgs args;
      args.keys = TheLayer().keys.refs();
      args.bands = kBands;
      args.q_heads = q_heads;
      const float* u_data = u->data();
      const float* w_data = w->data();
      args.u = DenseView(u_data, 1, q_heads, 1, kHeadDim);
      args.w = DenseView(w_data, 1, q_heads, kBands);
      args.candidates = TheLayer().All();
      args.zscore = zscore;
      return backend.TriAttention(args, Out());
    });
  }

  Op ExpectedAttention(int32_t group) {
    const auto q_heads = static_cast<int32_t>(group * kKvHeads);
    const std::string suffix = absl::StrCat(".g", group, ".f64");
    const auto linear = Shared<double>("ea_linear" + suffix, q_heads * kHeadDim);
    const auto factors = Shared<double>("ea_factors" + suffix, q_heads * kRank * kHeadDim);
    const auto diagonal = Shared<double>("ea_diagonal" + suffix, q_heads * kHeadDim);
    return Scorer([=, this](Backend& backend) {
      ExpectedAttentionArgs args;
      args.keys = TheLayer().keys.refs();
      args.values = TheLayer().values.refs();
      args.q_heads = q_heads;
      args.rank = kRank;
      const double* linear_data = linear->data();
      const double* factors_data = factors->data();
      const double* diagonal_data = diagonal->data();
      args.linear = DenseView(linear_data, 1, q_heads, kHeadDim);
      args.factors = DenseView(factors_data, 1, q_heads, kRank, kHeadDim);
      args.diagonal = DenseView(diagonal_data, 1, q_heads, kHeadDim);
      args.counted = TheLayer().All();
      args.log = true;
      return backend.ExpectedAttention(args, Out());
    });
  }

  Op SnapKv(int32_t group) {
    const auto q_heads = static_cast<int32_t>(group * kKvHeads);
    const auto queries =
        Shared<float>(absl::StrCat("queries.g", group, ".f32"), q_heads * kWindow * kHeadDim);
    return Scorer([=, this](Backend& backend) {
      WindowAttentionArgs args;
      args.keys = TheLayer().keys.refs();
      const float* data = queries->data();
      args.queries = DenseView(data, 1, q_heads, kWindow, kHeadDim);
      return backend.WindowAttention(args, Out());
    });
  }

  static Op TopK() {
    const std::vector<int32_t> counts(kKvHeads, kKept);
    const auto keep = std::make_shared<KeepList>(
        KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, kKvHeads)));
    Op op;
    op.kept = keep;
    op.run = [keep](Backend& backend) {
      TopKArgs args;
      args.scores = TheLayer().Scores();
      args.candidates = TheLayer().All();
      args.forced = TheLayer().None();
      return backend.TopK(args, keep.get());
    };
    return op;
  }

  // One role of the layer in one codec, every token of it.
  struct Coded {
    LayerRefs rows;
    KeepList keep;
    support::PackedCase packed;
    std::vector<std::byte> bytes;
    std::vector<Float16> mean;
    PagedRows out = PagedRows(TheLayer().shape, kTokens);

    Coded(LayerRefs rows, CodecSpec codec)
        : rows(rows),
          keep(support::KeepEvery(rows, 0, 1)),
          packed(support::PlanRows(rows, keep, codec)),
          bytes(packed.bytes),
          mean(kKvHeads * kHeadDim, Float16{0x2E66}) {}  // 0.1
    TensorView<const Float16, 3> Mean() const {
      return DenseView(mean.data(), int64_t{1}, kKvHeads, kHeadDim);
    }
    absl::Status Encode(Backend& backend) {
      EncodeCounts counts;
      const RotationTable* rotation = &TheLayer().rotation;
      return backend.Encode({rows, &keep, packed.table, Mean(), rotation, bytes}, &counts);
    }
    absl::Status Decode(Backend& backend) {
      return backend.Decode({bytes, packed.table, Mean(), &TheLayer().rotation, out.refs()});
    }
  };

  void AddCodec(const std::string& name, CodecSpec codec, Role role) {
    const auto make = [=] {
      Layer& layer = TheLayer();
      return std::make_shared<Coded>(role == Role::kKey ? layer.keys.refs() : layer.values.refs(),
                                     codec);
    };
    const auto answer = [](Coded& coded) {
      (void)coded.Decode(Sequential());
      return Dense(coded.out.refs()[0]);
    };
    makers_["encode." + name] = [=] {
      const auto coded = make();
      return Op{[=](Backend& backend) { return coded->Encode(backend); },
                [=] { return answer(*coded); }, nullptr, coded->packed.bytes};
    };
    makers_["decode." + name] = [=] {
      const auto coded = make();
      const absl::Status encoded = coded->Encode(Sequential());
      return Op{[=](Backend& backend) { return encoded.ok() ? coded->Decode(backend) : encoded; },
                [=] { return answer(*coded); }, nullptr, coded->packed.bytes};
    };
  }

  std::filesystem::path inputs_;
  std::vector<float> scores_ = std::vector<float>(kKvHeads * kTokens);
  std::map<std::string, std::function<Op()>> makers_;
  std::map<std::string, Op> ops_;
};

std::string Nanoseconds(const Instant& took) {
  return absl::StrCat(static_cast<int64_t>(took.wall * 1e9), " ",
                      static_cast<int64_t>(took.cpu * 1e9));
}

std::string Check(const Op& op, Backend& backend, const std::string& path) {
  const absl::Status status = op.run(backend);
  if (!status.ok()) return absl::StrCat("error: ", status.ToString());
  std::ofstream file(path, std::ios::binary);
  const auto write = [&file](const auto& values) {
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(values[0])));
  };
  if (op.answer == nullptr) {
    write(op.kept->tokens);
  } else {
    write(op.answer());
  }
  file.close();
  return file ? absl::StrCat("ok ", op.packed_bytes) : absl::StrCat("error: cannot write ", path);
}

// What answers lines: ops, and the threads that they and stream reads run on.
struct Rounds {
  Ops ops;
  std::unique_ptr<Backend> backend;
  StreamRead read;
};

std::string Answer(const std::string& line, Rounds& rounds) {
  std::istringstream words(line);
  std::string verb, name, path;
  words >> verb >> name >> path;
  if (verb == "read") return Nanoseconds(rounds.read.Run());
  Op* const op = rounds.ops.Find(name);
  if (op == nullptr) return absl::StrCat("error: no op \"", name, "\"");
  Backend& backend = *rounds.backend;
  if (verb == "check") return Check(*op, backend, path);
  if (verb != "run") return absl::StrCat("error: want read, run or check, got \"", verb, "\"");
  const Instant begin = Now();
  const absl::Status status = op->run(backend);
  const Instant took = Now() - begin;
  return status.ok() ? Nanoseconds(took) : absl::StrCat("error: ", status.ToString());
}

}  // namespace
}  // namespace kvern::bench

int main(int argc, char** argv) {
  CLI::App app("Ops of the cpu backend, one per line of standard input, timed.");
  std::string inputs;
  int threads = 1;
  app.add_option("--inputs", inputs, "folder that inputs.py filled")->required();
  app.add_option("--threads", threads, "of the backend and of stream reads");
  CLI11_PARSE(app, argc, argv);
  using kvern::bench::TheLayer;
  kvern::bench::Rounds rounds = {kvern::bench::Ops(inputs),
                                 kvern::MakeBackend({.name = "cpu", .threads = threads}).value(),
                                 kvern::bench::StreamRead(TheLayer().keys.memory(), threads)};
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << kvern::bench::Answer(line, rounds) << std::endl;
  }
  return 0;
}
