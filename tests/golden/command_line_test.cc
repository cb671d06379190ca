// The same goldens through `kvern compress --with-scores` and a running kvernd.
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/golden/compare.h"
#include "tests/support/server_process.h"

namespace kvern::golden {
namespace {

// What a result file says.
struct Result {
  std::vector<float> scores;  // [rows, source tokens]
  KeepList keep;
  std::vector<float> keys;  // [rows, max_kept, head_dim]
};

class CommandLineGolden : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { server_ = support::ServerProcess::Start().release(); }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    directory_ = std::filesystem::temp_directory_path() / absl::StrCat("kvern-golden-", getpid());
    std::filesystem::create_directories(directory_);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  // A cache file of the data folder with some tensors and keys replaced.
  struct Change {
    std::map<std::string, formats::TensorEntry> tensors;
    std::map<std::string, std::string> metadata;
  };
  std::string Changed(const std::string& cache, const Change& change) {
    formats::Safetensors contents = GoldenFile::Of(cache).contents();
    for (const auto& [name, tensor] : change.tensors) contents.tensors[name] = tensor;
    for (const auto& [key, text] : change.metadata) contents.metadata[key] = text;
    const std::string path = directory_ / "changed.safetensors";
    const std::string bytes = formats::WriteSafetensors(contents);
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes));
    return path;
  }
  template <class T>
  static std::span<const std::byte> Bytes(const std::vector<T>& values) {
    return std::as_bytes(std::span(values));
  }

  Result Compress(const std::string& input, const std::vector<std::string>& policy) {
    const std::string output = directory_ / "out.safetensors";
    std::vector<std::string> command = {support::BinaryPath("kvern"),
                                        "compress",
                                        input,
                                        "-o",
                                        output,
                                        "--with-scores",
                                        "--server",
                                        server_->Address()};
    command.insert(command.end(), policy.begin(), policy.end());
    const support::CommandOutput done = support::RunCommand(command);
    EXPECT_EQ(done.exit_code, 0) << absl::StrJoin(command, " ") << "\n" << done.err;
    Result result;
    if (done.exit_code != 0) return result;
    std::ifstream file(output, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    const auto parsed = formats::ParseSafetensors(std::as_bytes(std::span(bytes)));
    EXPECT_TRUE(parsed.ok()) << parsed.status();
    if (const formats::TensorEntry* scores = parsed->Find("scores")) {
      result.scores = formats::ToFloats("scores", *scores).value();
    }
    result.keys = formats::ToFloats("k", parsed->tensors.at("k")).value();
    TakeKept(*parsed, &result.keep);
    return result;
  }

  static std::string Address() { return server_->Address(); }

  // A policy with nothing protected, `budget` tokens per row.
  static std::vector<std::string> Policy(int64_t budget, std::vector<std::string> more) {
    std::vector<std::string> policy = {
        "--budget-tokens", absl::StrCat(budget), "--recent", "0", "--recent-share", "0"};
    policy.insert(policy.end(), more.begin(), more.end());
    return policy;
  }
  static void Check(const Result& result, const std::string& golden, const std::string& method,
                    const std::string& sets, int64_t budget, GoldenScores scores,
                    const Comparison& how) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden);
    const int64_t rows = result.keep.layers * result.keep.kv_heads;
    ASSERT_GT(rows, 0);
    if (scores.tokens > 0) {
      CompareScores(scores, result.scores, rows, result.keep.kv_heads, how);
    }
    CompareSets(SetsIn(file, sets, budget), scores, result.keep, how);
    EXPECT_FALSE(::testing::Test::HasFailure()) << method;
  }

 private:
  static void TakeKept(const formats::Safetensors& file, KeepList* keep) {
    const formats::TensorEntry& kept = file.tensors.at("kept_indices");
    const auto* indices = reinterpret_cast<const int32_t*>(kept.bytes.data());
    const auto* counts =
        reinterpret_cast<const int32_t*>(file.tensors.at("kept_counts").bytes.data());
    keep->layers = kept.shape[0];
    keep->kv_heads = kept.shape[1];
    keep->offsets = {0};
    for (int64_t row = 0; row < keep->layers * keep->kv_heads; ++row) {
      const int32_t* first = indices + row * kept.shape[2];
      keep->tokens.insert(keep->tokens.end(), first, first + counts[row]);
      keep->offsets.push_back(std::ssize(keep->tokens));
    }
  }

  static support::ServerProcess* server_;
  std::filesystem::path directory_;
};
support::ServerProcess* CommandLineGolden::server_ = nullptr;

struct Press {
  std::string golden;
  std::vector<std::string> flags;
  int64_t sinks = 0, tail = 0;
  Tolerance tolerance;
};

TEST_F(CommandLineGolden, MatchesThePressesOnBothCaches) {
  struct Cache {
    std::string name, golden, moments;
    int64_t budget;
    std::vector<Press> presses;
  };
  const std::string ea = "expected_attention:rank=full,future=512";
  const Cache caches[] = {
      {"pride-1024",
       "pride-1024-kvpress",
       "smollm2-query-moments",
       256,
       {{"knorm", {"--scorer", "key_norm"}, 0, 0, {.limit = 5e-6}},
        {"keydiff", {"--scorer", "keydiff"}, 0, 0, {.limit = 2e-5}},
        {"snapkv.w32.k5", {"--scorer", "snapkv"}, 0, 32, {.limit = 2e-5}},
        {"snapkv.w8.k7", {"--scorer", "snapkv:window=8,pool_width=7"}, 0, 8, {.limit = 2e-5}},
        {"observed_attention", {"--scorer", "attention_mass:per_visible"}, 0, 0, {.limit = 2e-5}},
        {"ea_stats", {"--scorer", ea}, 4, 0, {.limit = 1e-4}},
        {"ea_stats.eps0.01", {"--scorer", ea + ",epsilon=0.01"}, 4, 0, {.limit = 1e-4}}}},
      {"qwen-512",
       "qwen-512-kvpress",
       "qwen-query-moments",
       128,
       {{"knorm",
         {"--scorer", "key_norm"},
         0,
         0,
         {.limit = 3e-5, .absolute = true, .roundings = 1}},
        {"keydiff", {"--scorer", "keydiff"}, 0, 0, {.limit = 5e-7, .absolute = true}},
        {"snapkv.w32.k5", {"--scorer", "snapkv"}, 0, 32, {.limit = 5e-8, .absolute = true}},
        {"ea_stats", {"--scorer", ea}, 4, 0, {.limit = 1.5e-3}}}}};
  for (const Cache& cache : caches) {
    for (const Press& press : cache.presses) {
      std::vector<std::string> flags = press.flags;
      flags.insert(flags.end(), {"--sink", absl::StrCat(press.sinks)});
      if (press.golden.starts_with("ea")) {
        flags.insert(flags.end(), {"--calibration", DataPath(cache.moments)});
      }
      const Result result = Compress(DataPath(cache.name), Policy(cache.budget, flags));
      GoldenScores scores =
          ScoresIn(GoldenFile::Of("golden/" + cache.golden), press.golden + ".score");
      scores.begin = press.sinks;
      scores.end = scores.tokens - press.tail;
      Check(result, cache.golden, press.golden, press.golden, cache.budget, scores,
            {.what = absl::StrCat("kvern: ", cache.name, " ", press.golden),
             .tolerance = press.tolerance});
    }
    const Result streaming = Compress(
        DataPath(cache.name), Policy(cache.budget, {"--selector", "sink_recent", "--sink", "4"}));
    Check(streaming, cache.golden, "streaming_llm", "streaming_llm.sink4", cache.budget, {},
          {.what = absl::StrCat("kvern: ", cache.name, " streaming_llm")});
  }
}

TEST_F(CommandLineGolden, MatchesTriAttentionOnBothCaches) {
  struct Mode {
    std::string golden, selector;
  };
  const Mode modes[] = {{"per_layer_per_head", "topk"},
                        {"per_head", "topk:share=layers,reduce=mean"},
                        {"union", "topk:share=all,reduce=max"}};
  struct Case {
    std::string cache, golden, calibration;
    int64_t budget, pinned;
  };
  for (const Case& one :
       {Case{"pride-1024", "pride-1024-tri", "smollm2-calibration", 256, 0},
        {"pride-1024", "pride-1024-tri-pinned100", "smollm2-calibration", 256, 100},
        {"qwen-512", "qwen-512-tri", "qwen-calibration", 128, 0}}) {
    for (const Mode& mode : modes) {
      const std::string method = mode.golden + ".mean.z.gmax";
      const Result result =
          Compress(DataPath(one.cache),
                   Policy(one.budget,
                          {"--scorer", "triattention", "--selector", mode.selector, "--sink",
                           absl::StrCat(one.pinned), "--calibration", DataPath(one.calibration)}));
      const bool plain = one.cache == "qwen-512" && mode.golden == "union";
      Check(result, one.golden, method, method, one.budget,
            ScoresIn(GoldenFile::Of("golden/" + one.golden), method + ".score"),
            {.what = absl::StrCat("kvern: ", one.golden, " ", method),
             .tolerance = {.limit = plain ? 1e-4 : 1e-5},
             .shift = one.pinned});
    }
  }
}

TEST_F(CommandLineGolden, MatchesASecondRoundOnACompactedCache) {
  const GoldenFile& file = GoldenFile::Of("golden/pride-1024-tri-round2");
  const auto sequence = GoldenSequence::Real("pride-1024");
  const std::vector<int32_t> kept = file.Ints("round1.kept");
  sequence->CompactTo(kept);
  const pipeline::SequenceInput& input = sequence->input();
  const std::vector<int64_t> shape = {input.Layers(), input.KvHeads(), input.Tokens(),
                                      sequence->model().head_dim};
  std::vector<std::byte> planes[2];
  for (int role = 0; role < 2; ++role) {
    for (const KvRef& layer : role == 0 ? input.keys : input.values) {
      const int64_t bytes = shape[1] * shape[2] * shape[3] * 2;
      planes[role].insert(planes[role].end(), layer.base, layer.base + bytes);
    }
  }
  const std::vector<float> mass(kept.size());  // of the source's tokens: none of the slots
  const std::string path = Changed(
      "pride-1024", {{{"k", {"BF16", shape, planes[0]}},
                      {"v", {"BF16", shape, planes[1]}},
                      {"attention_mass", {"F32", {shape[0], shape[1], shape[2]}, Bytes(mass)}},
                      {"positions", {"I32", {shape[0], shape[1], shape[2]}, Bytes(kept)}}},
                     {{"logical_tokens", "1100"}, {"tokens", "256"}}});
  const Result result =
      Compress(path, Policy(128, {"--scorer", "triattention", "--sink", "0", "--calibration",
                                  DataPath("smollm2-calibration")}));
  Check(result, "pride-1024-tri-round2", "round2", "round2", 128, ScoresIn(file, "round2.score"),
        {.what = "kvern: pride-1024-tri-round2", .tolerance = {.limit = 1e-5}});
}

TEST_F(CommandLineGolden, MatchesThePicksOfAlphaOnBothCaches) {
  for (const std::string cache : {"pride-1024", "qwen-512"}) {
    const GoldenFile& file = GoldenFile::Of("golden/" + cache + "-alpha");
    const std::string path = Changed(cache, {{{"external_scores", file.At("score")}}, {}});
    for (const std::string lambda : {"0", "0.5", "1"}) {
      const Result result =
          Compress(path, Policy(64, {"--scorer", "external", "--sink", "0", "--selector",
                                     absl::StrCat("diverse:tie=oldest,lambda=", lambda)}));
      const std::string name = absl::StrCat("alpha.b64.lam", lambda);
      const std::vector<int32_t> picks = file.Ints(name + ".picks");
      const std::vector<float> margins = file.Floats(name + ".margin");
      Figures::Figure& figure = Figures::Get().Of(absl::StrCat("kvern: ", cache, " alpha"));
      for (int64_t row = 0; row < result.keep.layers * result.keep.kv_heads; ++row) {
        const auto first = margins.begin() + row * 64;
        if (std::any_of(first, first + 64, [](float m) { return m > 0 && m < 1e-6f; })) {
          ++figure.ambiguous;
          continue;
        }
        std::vector<int32_t> want(picks.begin() + row * 64, picks.begin() + (row + 1) * 64);
        std::sort(want.begin(), want.end());
        EXPECT_EQ(RowOf(result.keep, row), want) << path << " " << name << " row " << row;
        ++figure.sets;
      }
      EXPECT_GT(figure.sets, 0);
    }
  }
}

TEST_F(CommandLineGolden, TurnsKeptKeysToTheirNewPositions) {
  const GoldenFile& file = GoldenFile::Of("golden/pride-1024-kvpress");
  const std::vector<float> k = GoldenFile::Of("pride-1024").Floats("k");
  const std::vector<float> v = GoldenFile::Of("pride-1024").Floats("v");
  const std::vector<int64_t>& shape = GoldenFile::Of("pride-1024").At("k").shape;
  const std::string path = Changed(
      "pride-1024", {{{"k", {"F32", shape, Bytes(k)}}, {"v", {"F32", shape, Bytes(v)}}}, {}});
  const Result result = Compress(
      path, Policy(128, {"--scorer", "key_norm", "--sink", "0", "--positions", "renumber"}));
  EXPECT_EQ(result.keep.tokens, file.Ints("rerotate.knorm.kept"));
  const int64_t rows = shape[0] * shape[1] * 128;
  ASSERT_EQ(std::ssize(result.keys), rows * shape[3]);
  CompareScores(ScoresIn(file, "rerotate.knorm.keys"), result.keys, rows, rows,
                {.what = "kvern: pride-1024 rerotate.knorm keys",
                 .tolerance = {.limit = 2e-4, .absolute = true}});
}

TEST_F(CommandLineGolden, RefusesFourBitKeysWithTheirMean) {
  const support::CommandOutput done =
      support::RunCommand({support::BinaryPath("kvern"), "compress", DataPath("qwen-512"), "-o",
                           "/dev/null", "--codec", "k=lm4,v=lm4", "--server", Address()});
  EXPECT_NE(done.exit_code, 0);
  EXPECT_NE(done.err.find("INVALID_ARGUMENT"), std::string::npos) << done.err;
}

}  // namespace
}  // namespace kvern::golden
