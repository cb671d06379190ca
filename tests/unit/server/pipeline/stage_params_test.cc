#include "server/pipeline/stage_params.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::pipeline {
namespace {

using ::testing::HasSubstr;

constexpr ParamSpec kDeclared[] = {
    {"window", ParamType::kInt, "32", "1..4096", "h"},
    {"power", ParamType::kFloat, "0.5", "0..4", "h"},
    {"log", ParamType::kBool, "false", "false|true", "h"},
    {"rank", ParamType::kEnum, "full", "full|1..64", "h"},
};

std::string MessageOf(const StageSpec& spec) {
  return std::string(StageParams::Parse(spec, kDeclared).status().message());
}

TEST(ParseStageSpec, ReadsNameAndParameters) {
  const auto spec = ParseStageSpec("snapkv:window=32,pool=avg,log");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "snapkv");
  EXPECT_EQ(spec->params.at("window"), "32");
  EXPECT_EQ(spec->params.at("log"), "true");
  EXPECT_EQ(ToText(*spec), "snapkv:log=true,pool=avg,window=32");
}

TEST(ParseStageSpec, GivesBackItsCanonicalText) {
  for (const char* text : {"topk", "alpha:a=1", "diverse:lambda=0.5,scale=minmax"}) {
    EXPECT_EQ(ToText(*ParseStageSpec(text)), text);
  }
}

TEST(ParseStageSpec, RefusesMalformedText) {
  for (const char* text : {"", ":", "a:", "a:,", "a:=1", "a:b=", "A:b=1", "a b", "a:b=1,,c=2",
                           "a:b=1,b=2", "a:b c=1"}) {
    EXPECT_EQ(ParseStageSpec(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ParseStageSpec, QuotesOnlyTheBeginningOfALongText) {
  const auto spec = ParseStageSpec(std::string(10000, '!'));
  EXPECT_LT(spec.status().message().size(), 200u);
}

TEST(StageParams, FillsDefaults) {
  const auto params = StageParams::Parse({"s", {{"window", "64"}}}, kDeclared);
  ASSERT_TRUE(params.ok()) << params.status();
  EXPECT_EQ(params->Int("window"), 64);
  EXPECT_EQ(params->Float("power"), 0.5);
  EXPECT_FALSE(params->Bool("log"));
  EXPECT_EQ(params->Enum("rank"), "full");
}

TEST(StageParams, TakesIntegersAmongWordsWhereDeclared) {
  EXPECT_EQ(StageParams::Parse({"s", {{"rank", "8"}}}, kDeclared)->Int("rank"), 8);
  EXPECT_THAT(MessageOf({"s", {{"rank", "65"}}}), HasSubstr("rank got '65', want full|1..64"));
}

TEST(StageParams, NamesWhatItKnowsWhenAParameterIsUnknown) {
  const auto params = StageParams::Parse({"s", {{"windo", "1"}}}, kDeclared);
  EXPECT_EQ(params.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(params.status().message()), HasSubstr("window, power, log, rank"));
}

TEST(StageParams, RefusesValuesThatLeaveTheirRange) {
  const std::pair<const char*, const char*> bad[] = {
      {"window", "0"},   {"window", "4097"}, {"window", "x"},  {"window", "99999999999999999999"},
      {"power", "-0.1"}, {"power", "4.01"},  {"power", "nan"}, {"power", "inf"},
      {"power", ""},     {"log", "1"},       {"rank", "FULL"}, {"rank", "full|1..64"},
      {"window", "1.5"}};
  for (const auto& [name, value] : bad) {
    const auto params = StageParams::Parse({"s", {{name, value}}}, kDeclared);
    EXPECT_EQ(params.status().code(), absl::StatusCode::kInvalidArgument) << name << "=" << value;
    EXPECT_EQ(FieldOf(params.status()), std::string("params.") + name);
  }
}

TEST(StageParams, KeepsMessagesShortAndPrintable) {
  const std::string message = MessageOf({"s", {{"window", std::string(10000, '\xFF')}}});
  EXPECT_LT(message.size(), 600u);
  EXPECT_THAT(message, HasSubstr("\\xff"));
}

}  // namespace
}  // namespace kvern::pipeline
