#include "server/telemetry/call_log.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace kvern::telemetry {
namespace {

engine::RpcEnd Refused() {
  engine::RpcEnd end;
  end.code = absl::StatusCode::kInvalidArgument;
  end.message = "budget.tokens: got -1, want 0 or more";
  end.peer = "unix";
  end.request_id = "a \"quoted\"\nid";
  return end;
}

TEST(CallLog, WritesOneLineThatNoClientTextCanBreak) {
  for (const LogFormat format : {LogFormat::kText, LogFormat::kJson}) {
    const std::string line = Line(format, Refused());
    EXPECT_EQ(line.find('\n'), std::string::npos) << line;
  }
}

TEST(CallLog, WritesJsonThatAParserReadsBack) {
  const nlohmann::json fields =
      nlohmann::json::parse("{" + Line(LogFormat::kJson, Refused()) + "}");
  EXPECT_EQ(fields["rpc"], "CompressCache");
  EXPECT_EQ(fields["code"], "invalid_argument");
  EXPECT_EQ(fields["request_id"], "a \"quoted\"\nid");
}

TEST(CallLog, SurvivesInvalidUtf8) {
  engine::RpcEnd end = Refused();
  end.request_id = "\xff\xfe";
  EXPECT_TRUE(nlohmann::json::accept("{" + Line(LogFormat::kJson, end) + "}"));
}

TEST(CallLog, NamesOutcomeAndTimingsOfACompression) {
  engine::RpcEnd end;
  end.compress.emplace();
  end.compress->preset = "balanced";
  end.compress->sequences = 2;
  end.compress->applied = 2;
  end.compress->micros.score = 42;
  const std::string line = Line(LogFormat::kText, end);
  EXPECT_THAT(line, testing::HasSubstr("policy=\"balanced\""));
  EXPECT_THAT(line, testing::HasSubstr("applied=2"));
  EXPECT_THAT(line, testing::HasSubstr("score_us=42"));
}

}  // namespace
}  // namespace kvern::telemetry
