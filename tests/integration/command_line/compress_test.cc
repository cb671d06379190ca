// Presets and transports: whatever way a cache takes, its result is the same file, within the bytes
// that the policy promised.
#include <sstream>

#include "tests/integration/command_line/command_line.h"

namespace kvern {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CommandLineCompress : public CommandLineTest {
 protected:
  // Over shared memory, in the message, through the store, and without a server.
  void ExpectTheSameFileOnEveryWay(const std::string& input, const Words& policy) {
    SCOPED_TRACE(input + " " + ::testing::PrintToString(policy));
    Compress(input, "pool", policy + AtServer() + Words{"--via", "pool"});
    Compress(input, "inline", policy + AtServer() + Words{"--via", "inline"});
    Compress(input, "store", policy + AtServer() + Words{"--via", "store"});
    Compress(input, "auto", policy + AtServer());
    Compress(input, "local", policy + Words{"--local"});
    ASSERT_FALSE(Read("pool").empty());
    for (const char* other : {"inline", "store", "auto", "local"}) {
      EXPECT_TRUE(Read("pool") == Read(other)) << other;
    }
  }
};

int64_t PackedBytes(const TensorFile& file) {
  return static_cast<int64_t>(file.At("packed").bytes.size() +
                              file.At("packed_table").bytes.size() +
                              file.At("packed_mu").bytes.size());
}

int64_t DenseBytes(const TensorFile& file) {
  return static_cast<int64_t>(file.At("k").bytes.size() + file.At("v").bytes.size());
}

TEST_F(CommandLineCompress, GivesTheSameFileOnEveryWayByDefault) {
  ExpectTheSameFileOnEveryWay(kPride, {});
  ExpectTheSameFileOnEveryWay(kQwen, {});
}

TEST_F(CommandLineCompress, GivesTheSameFileOnEveryWayWithCalibrations) {
  ExpectTheSameFileOnEveryWay(kPride,
                              {"--calibration", kPrideCalibration, "--calibration", kPrideMoments});
}

TEST_F(CommandLineCompress, GivesTheSameFileOnEveryWayForOtherPolicies) {
  ExpectTheSameFileOnEveryWay(kQwen, {"--policy", "evict50"});
  ExpectTheSameFileOnEveryWay(kQwen, {"--policy", "safe"});
  ExpectTheSameFileOnEveryWay(kQwen, {"--keep-ratio", "0.3", "--scorer", "snapkv", "--with-scores",
                                      "--selector", "diverse", "--codec", "raw16"});
}

// Lines of kvern_rpc_requests_total that count anything but success.
std::vector<std::string> RefusedCalls(const std::string& page) {
  std::vector<std::string> lines;
  std::istringstream stream(page);
  for (std::string line; std::getline(stream, line);) {
    if (line.rfind("kvern_rpc_requests_total{", 0) != 0) continue;
    const bool counts = line.substr(line.rfind(' ')) != " 0";
    if (counts && line.find("code=\"ok\"") == std::string::npos) lines.push_back(line);
  }
  return lines;
}

TEST_F(CommandLineCompress, AsksOnceAndLeavesNothingAtTheServer) {
  const auto server = support::ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  for (const char* policy : {"balanced", "small", "tiny", "safe", "evict50"}) {
    Kvern({"compress", kQwen, "-o", PathOf("out"), "--server", server->Address(), "--policy",
           policy});
  }
  Kvern({"compress", kQwen, "-o", PathOf("out"), "--server", server->Address()});
  Kvern({"compress", kQwen, "-o", PathOf("out"), "--server", server->Address(), "--via", "store"});
  const std::string page = server->Scrape();
  EXPECT_THAT(page, HasSubstr("kvern_rpc_requests_total{code=\"ok\",rpc=\"CompressCache\"} 7"));
  EXPECT_THAT(RefusedCalls(page), IsEmpty());
  EXPECT_THAT(page, HasSubstr("kvern_store_sequences 0\n"));
  EXPECT_EQ(KvernJson({"store", "--server", server->Address()})["used_bytes"], 0);
  EXPECT_TRUE(KvernJson({"pools", "--server", server->Address()})["pools"].empty());
  EXPECT_EQ(server->MappedMemfds(), 0);
}

TEST_F(CommandLineCompress, NeverExceedsAPresetsShareOfTheBytes) {
  const Words pride = {"--calibration", kPrideCalibration, "--calibration", kPrideMoments};
  const Words qwen = {"--calibration", kQwenCalibration, "--calibration", kQwenMoments};
  const std::pair<std::string, Words> inputs[] = {
      {kPride, {}}, {kPride, pride}, {kQwen, {}}, {kQwen, qwen}};
  for (const auto& [input, calibrations] : inputs) {
    SCOPED_TRACE(input + " " + ::testing::PrintToString(calibrations));
    const TensorFile source(input);
    const int64_t whole = DenseBytes(source);
    const Result balanced =
        Compress(input, "balanced", calibrations + Words{"--policy", "balanced", "--local"});
    EXPECT_LE(4 * PackedBytes(*balanced.file), whole);
    EXPECT_GT(PackedBytes(*balanced.file), whole * 24 / 100);  // and it is used
    EXPECT_EQ(balanced.said["bytes_before"], whole);
    EXPECT_LE(balanced.said["bytes_after"].get<int64_t>() * 4, whole);
    EXPECT_GE(balanced.said["bytes_after"].get<int64_t>(), PackedBytes(*balanced.file));
    for (const auto& [preset, parts] : {std::pair{"small", 8}, {"tiny", 16}}) {
      const Result result =
          Compress(input, preset, calibrations + Words{"--policy", preset, "--local"});
      EXPECT_LE(result.said["bytes_after"].get<int64_t>() * parts, whole) << preset;
      EXPECT_GT(PackedBytes(*result.file) * parts, whole * 90 / 100) << preset;
    }
    const char* budgeter = calibrations.empty() ? "uniform" : "sensitivity";
    EXPECT_THAT(balanced.said["resolved"]["budgeter"].get<std::string>(), HasSubstr(budgeter));

    const Result half =
        Compress(input, "evict50", calibrations + Words{"--policy", "evict50", "--local"});
    EXPECT_EQ(2 * DenseBytes(*half.file), whole);
    EXPECT_EQ(half.said["bytes_after"].get<int64_t>() * 2, whole);
    EXPECT_EQ(half.said["shape_class"], "SHAPE_CLASS_S2");
  }
}

TEST_F(CommandLineCompress, SafeKeepsEveryTokenInAboutHalfOfTheBytes) {
  const Result safe = Compress(kPride, "safe", {"--policy", "safe", "--local"});
  const TensorFile source(kPride);
  EXPECT_THAT(safe.file->Ints("kept_counts"), ::testing::Each(1024));
  const int64_t after = safe.said["bytes_after"].get<int64_t>();
  EXPECT_GE(after, PackedBytes(*safe.file));
  EXPECT_LT(after, DenseBytes(source) * 54 / 100);
  EXPECT_GT(after, DenseBytes(source) * 50 / 100);
}

TEST_F(CommandLineCompress, ProfilesChooseTheScorer) {
  const Words moments = {"--calibration", kPrideMoments, "--local"};
  const Result facts =
      Compress(kPride, "facts", moments + Words{"--policy", "evict50", "--profile", "retrieval"});
  EXPECT_EQ(facts.said["resolved"]["scorer"], "keydiff:unrotate=true");
  const Result prose =
      Compress(kPride, "prose", moments + Words{"--policy", "evict50", "--profile", "text"});
  EXPECT_EQ(prose.said["resolved"]["scorer"], "expected_attention:log=true,rank=8");
  EXPECT_NE(facts.file->Ints("kept_indices"), prose.file->Ints("kept_indices"));
  // A profile has no fallback.
  const auto refused = Kvern({"compress", kPride, "-o", PathOf("x"), "--policy", "evict50",
                              "--profile", "text", "--local"},
                             1);
  EXPECT_THAT(refused.err, HasSubstr("FAILED_PRECONDITION/INPUT_MISSING"));
  EXPECT_THAT(refused.err, HasSubstr("next:  add --calibration"));
}

TEST_F(CommandLineCompress, UsesTheCalibrationsThatTheServerHasForTheModel) {
  const std::string models = PathOf("models");
  std::filesystem::create_directory(models);
  for (const char* from : {kPrideCalibration, kPrideMoments, kQwenCalibration, kQwenMoments}) {
    const std::filesystem::path path(from);
    std::filesystem::copy_file(path, models / path.filename());
  }
  const auto server = support::ServerProcess::Start({"--models", models});
  ASSERT_NE(server, nullptr);
  const Words there = {"--server", server->Address()};
  for (const auto& [input, calibration, moments] :
       {std::tuple(kPride, kPrideCalibration, kPrideMoments),
        std::tuple(kQwen, kQwenCalibration, kQwenMoments)}) {
    const Result bare = Compress(input, "bare", there);
    EXPECT_THAT(bare.said["resolved"]["budgeter"].get<std::string>(), HasSubstr("sensitivity"));
    EXPECT_EQ(bare.said["resolved"]["fallback"], "");
    Compress(input, "told",
             Words{"--local", "--calibration", calibration, "--calibration", moments});
    EXPECT_TRUE(Read("bare") == Read("told")) << input;
    const auto text = Kvern(Words{"compress", input, "-o", PathOf("again")} + there);
    EXPECT_THAT(text.out, HasSubstr("with the server's 2 calibrations"));
  }
  // No second registration of what was there.
  EXPECT_EQ(KvernJson(Words{"models"} + there)["models"].size(), 2);
  // `kvern store put` finds them as well.
  const auto put = KvernJson(Words{"store", "put", kQwen, "--name", "q"} + there);
  EXPECT_EQ(KvernJson(Words{"models"} + there)["models"].size(), 2);
  EXPECT_THAT(put["model"].get<std::string>(), HasSubstr("models/"));
}

TEST_F(CommandLineCompress, TakesNoCalibrationOfAnotherModelWithTheSameGeometry) {
  const auto server = support::ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  const Words there = {"--server", server->Address()};
  Kvern(Words{"models", "register", kPride, "--name", "pride", "--calibration", kPrideCalibration} +
        there);
  const TensorFile source(kPride);
  formats::Safetensors other = source.Contents();
  other.metadata["model"] = "another model's weights";
  const Result result = Compress(Write("other", other), "out", there);
  EXPECT_THAT(result.said["resolved"]["budgeter"].get<std::string>(), HasSubstr("uniform"));
  EXPECT_NE(result.said["model"], "models/pride");
  EXPECT_EQ(Compress(kPride, "own", there).said["model"], "models/pride");
}

}  // namespace
}  // namespace kvern
