// Flags, file and environment set the same names; refusals say what to change.
#include "server/main/config.h"

#include <cstdio>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvern {
namespace {

using testing::HasSubstr;

std::string WriteFile(const std::string& text) {
  // Tests run side by side: a file for each.
  const std::string path = testing::TempDir() + "kvern_config_" +
                           testing::UnitTest::GetInstance()->current_test_info()->name() + ".yaml";
  std::ofstream(path) << text;
  return path;
}

std::string ErrorOf(const std::vector<std::string>& arguments) {
  const auto line = ParseCommandLine(arguments);
  return line.ok() ? "" : std::string(line.status().message());
}

TEST(Config, ListensOnAUnixSocketByDefault) {
  const auto line = ParseCommandLine({});
  ASSERT_TRUE(line.ok()) << line.status();
  ASSERT_EQ(line->config.listen.size(), 1u);
  EXPECT_THAT(line->config.listen[0], testing::StartsWith("unix:/"));
  EXPECT_EQ(line->config.metrics_listen, "127.0.0.1:9464");
}

TEST(Config, TakesSizesWithUnits) {
  const auto line = ParseCommandLine({"--store-bytes", "3GiB"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->config.limits.store_bytes, int64_t{3} << 30);
}

TEST(Config, ReadsTheSameNamesFromYaml) {
  const std::string path =
      WriteFile("listen: [unix:/tmp/a.sock, 127.0.0.1:0]\nlog-format: json\nqueued-calls: 5\n");
  const auto line = ParseCommandLine({"--config", path});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->config.listen, testing::ElementsAre("unix:/tmp/a.sock", "127.0.0.1:0"));
  EXPECT_EQ(line->config.log_format, telemetry::LogFormat::kJson);
  EXPECT_EQ(line->config.limits.queued_calls, 5);
}

TEST(Config, TakesThePlaceOfTheStoreWhereTheBackendMayHaveIt) {
  EXPECT_EQ(ParseCommandLine({})->config.store_place, engine::StorePlace::kAuto);
  const std::string path = WriteFile("store-memory: host\n");
  EXPECT_EQ(ParseCommandLine({"--config", path})->config.store_place, engine::StorePlace::kHost);
  for (const char* backend : {"auto", "cuda"}) {
    const auto line = ParseCommandLine({"--backend", backend, "--store-memory", "device"});
    ASSERT_TRUE(line.ok()) << line.status();
    EXPECT_EQ(line->config.store_place, engine::StorePlace::kDevice);
  }
  EXPECT_THAT(ErrorOf({"--backend", "cpu", "--store-memory", "device"}),
              testing::HasSubstr("--store-memory"));
  EXPECT_THAT(ErrorOf({"--store-memory", "disk"}), testing::HasSubstr("--store-memory"));
}

TEST(Config, LetsFlagsWinOverTheFile) {
  const std::string path = WriteFile("queued-calls: 5\n");
  const auto line = ParseCommandLine({"--config", path, "--queued-calls", "9"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->config.limits.queued_calls, 9);
}

TEST(Config, RefusesUnknownKeysOfTheFile) {
  const std::string path = WriteFile("quued-calls: 5\n");
  EXPECT_THAT(ErrorOf({"--config", path}), HasSubstr("quued-calls"));
}

TEST(Config, RefusesYamlThatIsNoMap) {
  EXPECT_THAT(ErrorOf({"--config", WriteFile("- a\n- b\n")}), HasSubstr("want a map"));
  EXPECT_THAT(ErrorOf({"--config", WriteFile("a: [b\n")}), HasSubstr("not YAML"));
}

TEST(Config, RefusesTcpBeyondLoopbackWithoutTls) {
  EXPECT_THAT(ErrorOf({"--listen", "0.0.0.0:7070"}), HasSubstr("--insecure"));
  EXPECT_TRUE(ParseCommandLine({"--listen", "0.0.0.0:7070", "--insecure"}).ok());
  EXPECT_TRUE(ParseCommandLine({"--listen", "127.0.0.1:7070"}).ok());
}

TEST(Config, RefusesHalfATlsPair) {
  const std::string path = WriteFile("x");
  EXPECT_THAT(ErrorOf({"--tls-cert", path}), HasSubstr("both or neither"));
}

TEST(Config, RefusesEveryLimitAtZeroAndAboveItsLargest) {
  for (const LimitField& field : LimitFields()) {
    const std::string flag = std::string("--") + field.flag;
    EXPECT_NE(ErrorOf({flag, "0"}), "") << flag;
    EXPECT_NE(ErrorOf({flag, "-1"}), "") << flag;
    EXPECT_NE(ErrorOf({flag, "many"}), "") << flag;
    EXPECT_NE(ErrorOf({flag, "99999999999999999999"}), "") << flag;
  }
}

TEST(Config, PrintsHelpThatNamesEveryLimit) {
  const auto line = ParseCommandLine({"--help"});
  ASSERT_TRUE(line.ok());
  EXPECT_EQ(line->action, Action::kPrinted);
  for (const LimitField& field : LimitFields()) EXPECT_THAT(line->text, HasSubstr(field.flag));
}

}  // namespace
}  // namespace kvern
