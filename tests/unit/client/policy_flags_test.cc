// The words of the command line become exactly the parts of a policy that were said.
#include "client/cli/policy_flags.h"

#include "client/cli/errors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvern::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

absl::StatusOr<v1::Policy> Parse(const std::string& line) {
  CLI::App app;
  PolicyFlags flags;
  AddPolicyFlags(&app, &flags);
  app.parse(line);
  return ToPolicy(flags, /*cache_bytes=*/1000);
}

TEST(PolicyFlags, LeavesUnsaidPartsUnset) {
  const auto policy = Parse("");
  ASSERT_TRUE(policy.ok());
  EXPECT_EQ(policy->ByteSizeLong(), 0u);
}

TEST(PolicyFlags, SetsEveryPart) {
  const auto policy = Parse(
      "--policy small --profile text --budget-tokens 0 --budgeter pyramid:beta=10 "
      "--scorer keydiff:unrotate --scorer value_norm --blend sum --selector topk:tie=oldest "
      "--codec k=i8t+rm,v=lm4 --sink 0 --recent 8 --recent-share 0 --positions renumber "
      "--on-conflict fail");
  ASSERT_TRUE(policy.ok()) << policy.status();
  EXPECT_EQ(policy->preset(), "small");
  EXPECT_EQ(policy->profile(), "text");
  EXPECT_TRUE(policy->budget().has_tokens());
  EXPECT_EQ(policy->budgeter().name(), "pyramid");
  ASSERT_EQ(policy->scorers_size(), 2);
  EXPECT_EQ(policy->scorers(0).params().at("unrotate"), "true");
  EXPECT_EQ(policy->scorers(1).name(), "value_norm");
  EXPECT_EQ(policy->blend(), v1::BLEND_SUM);
  EXPECT_EQ(policy->selector().params().at("tie"), "oldest");
  EXPECT_EQ(policy->codecs().k(), "i8t+rm");
  EXPECT_EQ(policy->codecs().v(), "lm4");
  EXPECT_TRUE(policy->has_sink_tokens() && policy->sink_tokens() == 0);
  EXPECT_EQ(policy->recent_tokens(), 8);
  EXPECT_TRUE(policy->has_recent_share());
  EXPECT_EQ(policy->positions(), v1::POSITION_MODE_RENUMBER);
  EXPECT_EQ(policy->on_conflict(), v1::ON_CONFLICT_FAIL);
}

TEST(PolicyFlags, GivesOneCodecToBoth) {
  const auto policy = Parse("--codec i8t");
  ASSERT_TRUE(policy.ok());
  EXPECT_EQ(policy->codecs().k(), "i8t");
  EXPECT_EQ(policy->codecs().v(), "i8t");
}

TEST(PolicyFlags, TakesOneKindOfBudgetOnly) {
  EXPECT_THROW(static_cast<void>(Parse("--budget-tokens 5 --keep-ratio 0.5")), CLI::ParseError);
  EXPECT_THROW(static_cast<void>(Parse("--budget-bytes 5 --keep-ratio 0.5")), CLI::ParseError);
}

TEST(PolicyFlags, CallsABadCodecAUsageError) {
  const auto policy = Parse("--codec k=i8t,x=lm4");
  EXPECT_EQ(ExitCode(policy.status()), kExitUsage);
  EXPECT_THAT(std::string(policy.status().message()), HasSubstr("--codec"));
}

TEST(ParseStage, ReadsParametersInAnyOrder) {
  const auto stage = ParseStage("--scorer", "snapkv:window=64,pool=max,fast");
  ASSERT_TRUE(stage.ok());
  EXPECT_EQ(stage->name(), "snapkv");
  EXPECT_THAT(stage->params(), UnorderedElementsAre(Pair("window", "64"), Pair("pool", "max"),
                                                    Pair("fast", "true")));
}

TEST(ParseStage, RefusesWhatItCannotRead) {
  for (const char* text : {"", ":a=1", "x:a=", "x:=1", "x:a=1,a=2"}) {
    EXPECT_EQ(ExitCode(ParseStage("--scorer", text).status()), kExitUsage) << text;
  }
}

TEST(ParseSize, ReadsUnits) {
  EXPECT_EQ(*ParseSize("f", "64000", 1000), 64000);
  EXPECT_EQ(*ParseSize("f", "4MiB", 1000), 4 << 20);
  EXPECT_EQ(*ParseSize("f", "1.5K", 1000), 1536);
  EXPECT_EQ(*ParseSize("f", "2GB", 1000), 2'000'000'000);
  EXPECT_EQ(*ParseSize("f", "6.25%", 1000), 62);
}

TEST(ParseSize, RefusesWhatIsNoSize) {
  for (const char* text : {"", "x", "-1", "nan", "1e30", "4 m", "%", "5%B"}) {
    EXPECT_EQ(ExitCode(ParseSize("f", text, 1000).status()), kExitUsage) << text;
  }
}

}  // namespace
}  // namespace kvern::cli
