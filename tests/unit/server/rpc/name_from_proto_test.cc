// Resource names: what is accepted, and that nothing else is.
#include "server/rpc/name_from_proto.h"

#include <string>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

const FieldPath kPath("name");

TEST(ParseName, TakesTheIdBehindThePrefix) {
  EXPECT_EQ(*ParseName("models/qwen-2.5_7B", Collection::kModels, kPath), "qwen-2.5_7B");
  EXPECT_EQ(*ParseName("pools/0", Collection::kPools, kPath), "0");
  EXPECT_EQ(*ParseName("sequences/" + std::string(128, 'a'), Collection::kSequences, kPath),
            std::string(128, 'a'));
  const std::string sha256(64, 'f');
  EXPECT_EQ(*ParseName("calibrations/" + sha256, Collection::kCalibrations, kPath), sha256);
}

TEST(ParseName, RefusesForeignPrefixesLongIdsAndOtherCharacters) {
  for (const std::string& name :
       {std::string(), std::string("x"), std::string("models/"), std::string("pools/x"),
        std::string("models/a/b"), std::string("models/a b"), std::string("models/\xC3\xA9"),
        std::string("models/a\0b", 10), "models/" + std::string(129, 'a')}) {
    SCOPED_TRACE(name);
    ExpectBadField(ParseName(name, Collection::kModels, kPath).status(), "name",
                   "want models/{1..128 bytes of [A-Za-z0-9_.-]}");
  }
}

TEST(ParseName, WantsCalibrationsByTheirLowerCaseDigest) {
  for (const std::string& id :
       {std::string(63, 'a'), std::string(65, 'a'), std::string(64, 'A'), std::string(64, 'g')}) {
    ExpectBadField(ParseName("calibrations/" + id, Collection::kCalibrations, kPath).status(),
                   "name", "64 lower-case hex digits");
  }
}

TEST(ParseOptionalName, LeavesAnEmptyNameToTheServer) {
  EXPECT_EQ(*ParseOptionalName("", Collection::kPools, kPath), "");
  EXPECT_FALSE(ParseOptionalName("pools/", Collection::kPools, kPath).ok());
}

TEST(MakeName, IsTheInverseOfParseName) {
  EXPECT_EQ(MakeName("a", Collection::kSequences), "sequences/a");
  EXPECT_EQ(MakeName("", Collection::kSequences), "");
}

TEST(CheckOpaqueId, TakesAnyBytesUpToItsLength) {
  EXPECT_TRUE(CheckOpaqueId("a b/c", kPath).ok());
  ExpectBadField(CheckOpaqueId("", kPath), "name", "got 0 bytes, want 1..128");
  ExpectBadField(CheckOpaqueId(std::string(129, 'a'), kPath), "name", "got 129 bytes");
}

}  // namespace
}  // namespace kvern::rpc
