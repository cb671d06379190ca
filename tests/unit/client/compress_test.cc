// The whole way of a real cache: every transport gives the same file, and files can be used again.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "client/cli/app.h"
#include "client/cli/errors.h"
#include "client/cpp/cache_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/main/server.h"
#include "server/telemetry/call_log.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kPride[] = KVERN_TEST_DATA "/pride-1024.safetensors";
constexpr char kQwen[] = KVERN_TEST_DATA "/qwen-512.safetensors";

class CompressTest : public TemporaryFiles {
 protected:
  // Returns what the command printed; the exit code must be `code`.
  std::string Kvern(std::vector<std::string> arguments, int code = kExitOk) {
    std::ostringstream out, err;
    const Console console{.out = out, .err = err, .width = 100};
    EXPECT_EQ(cli::Run(arguments, console), code) << ::testing::PrintToString(arguments) << "\n"
                                                  << err.str();
    return out.str() + err.str();
  }
  void StartServer() {
    telemetry::StartLog(telemetry::LogFormat::kText, telemetry::LogLevel::kError);
    Config config;
    config.listen = {"unix:" + PathOf("k.sock")};
    config.limits.store_bytes = int64_t{64} << 20;
    auto started = Server::Start(config);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  client::CacheFile Open(const std::string& name) { return *client::CacheFile::Open(PathOf(name)); }

 private:
  std::unique_ptr<Server> server_;
};

TEST_F(CompressTest, GivesTheSamePackedFileOverEveryTransport) {
  StartServer();
  const std::string server = "unix:" + PathOf("k.sock");
  Kvern({"compress", kPride, "-o", PathOf("inline"), "--local"});
  Kvern({"compress", kPride, "-o", PathOf("store"), "--local", "--via", "store"});
  const std::string text = Kvern({"compress", kPride, "-o", PathOf("pool"), "--server", server});
  EXPECT_THAT(text, HasSubstr("through shared memory"));
  EXPECT_THAT(text, HasSubstr("balanced"));
  EXPECT_EQ(Read("inline"), Read("store"));
  EXPECT_EQ(Read("inline"), Read("pool"));
  // Nothing stays behind at the server.
  const auto store = nlohmann::json::parse(Kvern({"store", "--json", "--server", server}));
  EXPECT_EQ(store["used_bytes"], 0);
  EXPECT_THAT(Kvern({"pools", "list", "--server", server}), HasSubstr("no pools"));
}

TEST_F(CompressTest, GivesTheSameDenseFileOverEveryTransport) {
  StartServer();
  const std::vector<std::string> policy = {"--keep-ratio", "0.5",        "--scorer",
                                           "keydiff",      "--budgeter", "pyramid"};
  const auto compress = [&](const std::string& out, std::vector<std::string> how) {
    std::vector<std::string> line = {"compress", kQwen, "-o", PathOf(out)};
    line.insert(line.end(), policy.begin(), policy.end());
    line.insert(line.end(), how.begin(), how.end());
    Kvern(line);
  };
  compress("inline", {"--local"});
  compress("store", {"--local", "--via", "store"});
  compress("pool", {"--server", "unix:" + PathOf("k.sock")});
  EXPECT_EQ(Read("inline"), Read("store"));
  EXPECT_EQ(Read("inline"), Read("pool"));
}

TEST_F(CompressTest, FindsTheWayBackWhereOnlyTheServerKnowsTheCodec) {
  StartServer();
  const std::string server = "unix:" + PathOf("k.sock");
  for (const std::string policy : {"evict50", "safe"}) {
    Kvern({"compress", kQwen, "-o", PathOf("inline"), "--local", "--policy", policy});
    Kvern({"compress", kQwen, "-o", PathOf("pool"), "--server", server, "--policy", policy});
    EXPECT_EQ(Read("inline"), Read("pool")) << policy;
  }
}

TEST_F(CompressTest, CopiesKeptTokensBitForBit) {
  Kvern({"compress", kPride, "-o", PathOf("a"), "--local", "--keep-ratio", "0.25", "--scorer",
         "key_norm", "--with-scores"});
  const client::CacheFile source = *client::CacheFile::Open(kPride);
  const client::CacheFile result = Open("a");
  const client::CacheShape& shape = result.Shape();
  ASSERT_EQ(shape.tokens, 256);
  const std::vector<int32_t> kept = result.Ints("kept_indices");
  const int64_t row_bytes = shape.head_dim * 2;
  for (int64_t row = 0; row < shape.Rows(); ++row) {
    for (int64_t slot = 0; slot < shape.tokens; ++slot) {
      const int64_t at = row * shape.tokens + slot;
      const int64_t from = row * 1024 + kept[at];
      ASSERT_EQ(std::memcmp(result.K().data() + at * row_bytes,
                            source.K().data() + from * row_bytes, row_bytes),
                0);
      ASSERT_EQ(std::memcmp(result.V().data() + at * row_bytes,
                            source.V().data() + from * row_bytes, row_bytes),
                0);
    }
  }
  EXPECT_EQ(std::ssize(result.BytesOf("scores")), shape.Rows() * 1024 * 4);
  EXPECT_EQ(result.LogicalTokens(), 1024);
  EXPECT_EQ(result.Contents().Find("attention_mass"), nullptr);  // it spoke of other tokens
  EXPECT_EQ(result.BytesOf("token_ids").size(), source.BytesOf("token_ids").size());
}

TEST_F(CompressTest, UnpacksToTheSameBytesOnEveryBackend) {
  Kvern({"compress", kQwen, "-o", PathOf("packed"), "--local"});
  EXPECT_TRUE(Open("packed").Packed());
  EXPECT_THAT(Kvern({"compress", PathOf("packed"), "-o", PathOf("x"), "--local"}, kExitRefused),
              HasSubstr("kvern unpack"));
  Kvern({"unpack", PathOf("packed"), "-o", PathOf("ref"), "--backend", "ref"});
  Kvern({"unpack", PathOf("packed"), "-o", PathOf("cpu"), "--backend", "cpu", "--threads", "2"});
  EXPECT_EQ(Read("ref"), Read("cpu"));
  EXPECT_EQ(Open("ref").Shape().tokens, Open("packed").Shape().tokens);
  Kvern({"compress", PathOf("ref"), "-o", PathOf("again"), "--local", "--policy", "safe"});
}

TEST_F(CompressTest, RefusesAPackedTableThatLeavesItsBlocks) {
  Kvern({"compress", kQwen, "-o", PathOf("packed"), "--local"});
  const client::CacheFile packed = Open("packed");
  formats::Safetensors file = packed.Contents();
  std::vector<std::byte> table(packed.BytesOf("packed_table").begin(),
                               packed.BytesOf("packed_table").end());
  const int64_t far = int64_t{1} << 40;
  std::memcpy(table.data() + 56, &far, sizeof(far));
  file.tensors["packed_table"].bytes = table;
  Write("bad", file);
  Kvern({"unpack", PathOf("bad"), "-o", PathOf("x")}, kExitRefused);
  EXPECT_FALSE(std::filesystem::exists(PathOf("x")));
}

TEST_F(CompressTest, KeepsEverythingWithinTheBudgetByteForByte) {
  for (const std::string via : {"inline", "store"}) {
    Kvern({"compress", kQwen, "-o", PathOf(via), "--local", "--via", via, "--budget-tokens", "512",
           "--scorer", "key_norm"});
    const client::CacheFile source = *client::CacheFile::Open(kQwen);
    const client::CacheFile result = Open(via);
    EXPECT_TRUE(std::ranges::equal(result.K(), source.K())) << via;
    EXPECT_TRUE(std::ranges::equal(result.V(), source.V())) << via;
    EXPECT_THAT(result.Lengths(), IsEmpty());
  }
}

TEST_F(CompressTest, CompressesARaggedResultAgainThroughSharedMemoryOnly) {
  StartServer();
  const std::string server = "unix:" + PathOf("k.sock");
  Kvern({"compress", kQwen, "-o", PathOf("ragged"), "--server", server, "--keep-ratio", "0.5",
         "--scorer", "keydiff", "--budgeter", "pyramid"});
  EXPECT_FALSE(Open("ragged").Lengths().empty());
  const std::vector<std::string> again = {"compress",      PathOf("ragged"), "-o",
                                          PathOf("twice"), "--keep-ratio",   "0.5",
                                          "--scorer",      "keydiff"};
  std::vector<std::string> local = again, shared = again;
  local.push_back("--local");
  shared.insert(shared.end(), {"--server", server});
  EXPECT_THAT(Kvern(local, kExitRefused), HasSubstr("shared memory"));
  Kvern(shared);
  EXPECT_LT(Open("twice").Shape().tokens, Open("ragged").Shape().tokens);
}

TEST_F(CompressTest, PlansWhatCompressDoes) {
  const std::vector<std::string> policy = {
      "--json",        "--local",
      "--calibration", KVERN_TEST_DATA "/qwen-calibration.safetensors",
      "--calibration", KVERN_TEST_DATA "/qwen-query-moments.safetensors"};
  std::vector<std::string> plan = {"plan", kQwen},
                           compress = {"compress", kQwen, "-o", PathOf("a")};
  plan.insert(plan.end(), policy.begin(), policy.end());
  compress.insert(compress.end(), policy.begin(), policy.end());
  const auto planned = nlohmann::json::parse(Kvern(plan));
  const auto done = nlohmann::json::parse(Kvern(compress));
  EXPECT_EQ(planned["kept_counts"], done["kept_counts"]);
  EXPECT_EQ(planned["bytes_after"], done["bytes_after"]);
  EXPECT_EQ(planned["resolved"], done["resolved"]);
  EXPECT_EQ(done["resolved"]["budgeter"], "sensitivity");
}

TEST_F(CompressTest, KeepsACacheInTheStoreUntilItIsFetched) {
  StartServer();
  const std::string server = "unix:" + PathOf("k.sock");
  Kvern({"store", "put", kQwen, "--name", "q", "--server", server});
  EXPECT_THAT(Kvern({"store", "put", kQwen, "--name", "q", "--server", server}, kExitRefused),
              HasSubstr("ALREADY_EXISTS"));
  Kvern({"store", "get", "q", "-o", PathOf("back"), "--server", server});
  const client::CacheFile source = *client::CacheFile::Open(kQwen);
  const client::CacheFile back = Open("back");
  EXPECT_TRUE(std::ranges::equal(back.K(), source.K()));
  EXPECT_TRUE(std::ranges::equal(back.V(), source.V()));
  EXPECT_EQ(back.LayerIndices(), source.LayerIndices());
  Kvern({"store", "delete", "q", "--server", server});
  Kvern({"store", "get", "q", "-o", PathOf("x"), "--server", server}, kExitRefused);
}

TEST_F(CompressTest, SaysWhatAScorerLacks) {
  const std::string text = Kvern({"compress", kPride, "-o", PathOf("x"), "--local", "--keep-ratio",
                                  "0.5", "--scorer", "triattention"},
                                 kExitRefused);
  EXPECT_THAT(text, HasSubstr("calibration"));
  EXPECT_THAT(text, HasSubstr("next:"));
  EXPECT_EQ(FileCount(), 0u);
}

TEST_F(CompressTest, ListsStagesForPeopleDocumentsAndPrograms) {
  EXPECT_THAT(Kvern({"stages", "--local", "snapkv"}), HasSubstr("window=32"));
  EXPECT_THAT(Kvern({"stages", "--local", "--markdown", "codec"}), HasSubstr("| `raw16` |"));
  EXPECT_FALSE(nlohmann::json::parse(Kvern({"stages", "--local", "--json"}))["presets"].empty());
  Kvern({"stages", "--local", "nonsense"}, kExitUsage);
}

}  // namespace
}  // namespace kvern::cli
