// The table covers every limit once, with values that the defaults fit.
#include "server/memory/limits.h"

#include <cstring>
#include <set>
#include <string>

#include "gtest/gtest.h"

namespace kvern {
namespace {

TEST(Limits, EveryFieldIsInTheTableOnceAndInOrder) {
  Limits limits;
  const auto* base = reinterpret_cast<const char*>(&limits);
  int64_t next = 0;
  for (const LimitField& field : LimitFields()) {
    const auto* at = reinterpret_cast<const char*>(&(limits.*field.field));
    EXPECT_EQ(at - base, next) << field.flag;
    next += sizeof(int64_t);
  }
  EXPECT_EQ(next, static_cast<int64_t>(sizeof(Limits)));
}

TEST(Limits, DefaultsAreInRange) {
  const Limits limits;
  for (const LimitField& field : LimitFields()) {
    EXPECT_GE(limits.*field.field, 1) << field.flag;
    EXPECT_LE(limits.*field.field, field.max) << field.flag;
  }
}

TEST(Limits, FlagsAreDistinctLowerCaseWordsWithHelp) {
  std::set<std::string> flags;
  for (const LimitField& field : LimitFields()) {
    EXPECT_TRUE(flags.insert(field.flag).second) << field.flag;
    EXPECT_EQ(std::string(field.flag).find_first_not_of("abcdefghijklmnopqrstuvwxyz-"),
              std::string::npos)
        << field.flag;
    EXPECT_GT(std::strlen(field.help), 0u) << field.flag;
  }
}

}  // namespace
}  // namespace kvern
