// Paths, ranges and products: the words that every refusal is made of.
#include "server/rpc/field_path.h"

#include <limits>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::rpc {
namespace {

TEST(FieldPath, SpellsFieldsAndIndicesAsTheWireDoes) {
  const FieldPath root("sequences");
  EXPECT_EQ(root.ToString(), "sequences");
  EXPECT_EQ(root.At(2).Child("paged").Child("block_ids").ToString(),
            "sequences[2].paged.block_ids");
}

TEST(CheckRange, NamesGotAndWant) {
  const FieldPath path("num_layers");
  EXPECT_TRUE(CheckRange(path, 1, 1, 512).ok());
  EXPECT_TRUE(CheckRange(path, 512, 1, 512).ok());
  const absl::Status status = CheckRange(path, 513, 1, 512);
  EXPECT_EQ(status.message(), "num_layers: got 513, want 1..512");
  EXPECT_EQ(FieldOf(status), "num_layers");
  EXPECT_FALSE(CheckRange(path, 0, 1, 512).ok());
}

TEST(CheckedProduct, RefusesOverflowAndNegativeFactors) {
  EXPECT_EQ(*CheckedProduct({2, 3, 5}), 30);
  EXPECT_EQ(*CheckedProduct({int64_t{1} << 62, 1}), int64_t{1} << 62);
  EXPECT_FALSE(CheckedProduct({int64_t{1} << 62, 2}).ok());
  EXPECT_FALSE(CheckedProduct({-1, 5}).ok());
}

TEST(CutUtf8, NeverSplitsACharacter) {
  EXPECT_EQ(CutUtf8("abc", 5), "abc");
  EXPECT_EQ(CutUtf8("abc", 2), "ab");
  EXPECT_EQ(CutUtf8("a\xC3\xA9z", 2), "a");
  EXPECT_EQ(CutUtf8("a\xC3\xA9z", 3), "a\xC3\xA9");
}

TEST(Quoted, ShortensLongClientText) {
  EXPECT_EQ(Quoted("x"), "\"x\"");
  EXPECT_EQ(Quoted(std::string(1000, 'y')).size(), 64 + 5u);
}

}  // namespace
}  // namespace kvern::rpc
