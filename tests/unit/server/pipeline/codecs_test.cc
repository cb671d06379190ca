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
  for (const char* text : {"raw16", "i8t", "i8t+rm", "H+i8t+rm", "H+i8t", "lm4+rm", "fp8t",
                           "H+fp8t+rm", "kch4", "i4t+rm", "H+i4t+rm", "sfv3+rm"}) {
    EXPECT_EQ(ToText(*ParseCodec(text, Role::kKey)), text);
  }
  for (const char* text : {"fp8t", "H+fp8t", "i4t", "H+i4t", "sfv3", "sfv2"}) {
    EXPECT_EQ(ToText(*ParseCodec(text, Role::kValue)), text);
  }
}

TEST(ParseCodec, RefusesKeysBelowEightBitsWithoutRm) {
  for (const std::string name : {"lm4", "i4t", "sfv3"}) {
    const auto codec = ParseCodec(name, Role::kKey);
    EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(codec.status().message()), HasSubstr("want " + name + "+rm"));
  }
}

TEST(ParseCodec, RefusesCodecsOfTheOtherRole) {
  const auto keys = ParseCodec("sfv2", Role::kKey);
  EXPECT_EQ(keys.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(keys.status().message()), HasSubstr("want values only"));
  const auto values = ParseCodec("kch4", Role::kValue);
  EXPECT_EQ(values.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(values.status().message()), HasSubstr("want keys only"));
  EXPECT_FALSE(ParseCodec("sfv2+rm", Role::kKey).ok());
}

TEST(ParseCodec, RefusesRmOnValues) {
  EXPECT_FALSE(ParseCodec("lm4+rm", Role::kValue).ok());
  EXPECT_FALSE(ParseCodec("i8t+rm", Role::kValue).ok());
}

TEST(ParseCodec, ListsTheKnownWhenAWordIsUnknown) {
  for (const char* text : {"", "+", "sfv4", "i8t+cm", "I8T", "i8t+", "int8"}) {
    const auto codec = ParseCodec(text, Role::kValue);
    EXPECT_EQ(codec.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(codec.status().message()),
                HasSubstr("raw16, i8t, fp8t, kch4, i4t, lm4, sfv3, sfv2"))
        << text;
  }
}

TEST(ParseCodec, RefusesWordsThatDoNotCombine) {
  for (const char* text : {"H", "rm", "i8t+lm4", "i8t+i8t", "H+H+i8t", "H+raw16", "H+lm4", "H+sfv3",
                           "H+sfv2", "H+kch4"}) {
    EXPECT_FALSE(ParseCodec(text, Role::kValue).ok()) << text;
  }
  EXPECT_FALSE(ParseCodec("raw16+rm", Role::kKey).ok());
  EXPECT_FALSE(ParseCodec("kch4+rm", Role::kKey).ok());
}

TEST(ParseCodec, QuotesOnlyTheBeginningOfALongText) {
  EXPECT_LT(ParseCodec(std::string(10000, 'x'), Role::kKey).status().message().size(), 400u);
}

}  // namespace
}  // namespace kvern::pipeline
