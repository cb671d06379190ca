#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/pipeline/codec.h"

namespace kvern::pipeline {
namespace {

using ::testing::HasSubstr;

TEST(ParseCodec, ReadsNamesAndFlagsInAnyOrder) {
  EXPECT_EQ(*ParseCodec("raw16", Role::kKey), (CodecSpec{CodecId::kRaw16, 0}));
  EXPECT_EQ(*ParseCodec("i8t", Role::kValue), (CodecSpec{CodecId::kI8t, 0}));
  EXPECT_EQ(*ParseCodec("i8t+rm", Role::kKey), (CodecSpec{CodecId::kI8t, kFlagRopeMean}));
  EXPECT_EQ(*ParseCodec("H+i8t+rm", Role::kKey), *ParseCodec("rm+i8t+H", Role::kKey));
}

TEST(ParseCodec, SetsHadamardWhereTheCodeIsDefinedOnRotatedCoordinates) {
  EXPECT_EQ(*ParseCodec("lm4", Role::kValue), (CodecSpec{CodecId::kLm4, kFlagHadamard}));
  EXPECT_EQ(ToText(*ParseCodec("lm4+rm", Role::kKey)), "lm4+rm");
}

TEST(ParseCodec, GivesBackItsCanonicalText) {
  for (const char* text : {"raw16", "i8t", "i8t+rm", "H+i8t+rm", "H+i8t", "lm4+rm"}) {
    EXPECT_EQ(ToText(*ParseCodec(text, Role::kKey)), text);
  }
}

TEST(ParseCodec, RefusesKeysBelowEightBitsWithoutRm) {
  const auto codec = ParseCodec("lm4", Role::kKey);
  EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(codec.status().message()), HasSubstr("want lm4+rm"));
}

TEST(ParseCodec, RefusesRmOnValues) {
  EXPECT_FALSE(ParseCodec("lm4+rm", Role::kValue).ok());
  EXPECT_FALSE(ParseCodec("i8t+rm", Role::kValue).ok());
}

TEST(ParseCodec, ListsTheKnownWhenAWordIsUnknown) {
  for (const char* text : {"", "+", "sfv3", "i8t+cm", "I8T", "i8t+", "int8"}) {
    const auto codec = ParseCodec(text, Role::kValue);
    EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(codec.status().message()), HasSubstr("raw16, i8t, lm4")) << text;
  }
}

TEST(ParseCodec, RefusesWordsThatDoNotCombine) {
  for (const char* text : {"H", "rm", "i8t+lm4", "i8t+i8t", "H+H+i8t", "H+raw16", "H+lm4"}) {
    EXPECT_FALSE(ParseCodec(text, Role::kValue).ok()) << text;
  }
  EXPECT_FALSE(ParseCodec("raw16+rm", Role::kKey).ok());
}

TEST(ParseCodec, QuotesOnlyTheBeginningOfALongText) {
  EXPECT_LT(ParseCodec(std::string(10000, 'x'), Role::kKey).status().message().size(), 400u);
}

}  // namespace
}  // namespace kvern::pipeline
