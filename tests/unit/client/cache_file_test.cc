// Cache files: what is read is what was written, and what does not fit is named.
#include "client/cpp/cache_file.h"

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/client/small_cache.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class CacheFileTest : public TemporaryFiles {};

TEST_F(CacheFileTest, ReadsTheSampleCache) {
  const auto cache = CacheFile::Open(KVERN_TEST_DATA "/pride-1024.safetensors");
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->Shape().layers, 8);
  EXPECT_EQ(cache->Shape().kv_heads, 3);
  EXPECT_EQ(cache->Shape().tokens, 1024);
  EXPECT_EQ(cache->Shape().head_dim, 64);
  EXPECT_EQ(cache->Shape().dtype, DType::kBF16);
  EXPECT_EQ(std::ssize(cache->K()), cache->Shape().PlaneBytes());
  EXPECT_EQ(cache->LogicalTokens(), 1024);
  EXPECT_EQ(cache->LayerIndices().size(), 8u);
  EXPECT_THAT(cache->Lengths(), IsEmpty());
}

TEST_F(CacheFileTest, KeepsEveryByteThroughAWriteAndARead) {
  const SmallCache small;
  std::vector<std::pair<int64_t, int64_t>> seen;
  ASSERT_TRUE(WriteSafetensorsFile(PathOf("a"), small.File(), [&](int64_t done, int64_t total) {
                seen.emplace_back(done, total);
              }).ok());
  const auto cache = CacheFile::Open(PathOf("a"));
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(std::memcmp(cache->K().data(), small.k.data(), cache->K().size()), 0);
  EXPECT_EQ(std::memcmp(cache->V().data(), small.v.data(), cache->V().size()), 0);
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back().first, seen.back().second);
  EXPECT_EQ(static_cast<size_t>(seen.back().second), Read("a").size());
}

TEST_F(CacheFileTest, LeavesNothingBehindWhenTheFolderIsMissing) {
  const absl::Status status = WriteSafetensorsFile(PathOf("no/such"), SmallCache().File(), nullptr);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(FileCount(), 0u);
}

TEST_F(CacheFileTest, SaysWhenThereIsNoFile) {
  EXPECT_TRUE(absl::IsNotFound(CacheFile::Open(PathOf("none")).status()));
}

TEST_F(CacheFileTest, RefusesAnEmptyFile) {
  EXPECT_TRUE(absl::IsInvalidArgument(CacheFile::Open(Write("empty", std::string())).status()));
}

TEST_F(CacheFileTest, RefusesAnotherFormatByItsName) {
  const auto cache = CacheFile::Open(KVERN_TEST_DATA "/smollm2-calibration.safetensors");
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("kvern-calibration/1"));
}

TEST_F(CacheFileTest, NamesTheTensorThatDoesNotFit) {
  const SmallCache small;
  const std::vector<int32_t> three(3);
  for (const char* name : {"positions", "layer_indices", "kept_counts"}) {
    formats::Safetensors file = small.File();
    file.tensors[name] = {"I32", {3}, SmallCache::Bytes(three)};
    const auto cache = CacheFile::Open(Write("bad", file));
    EXPECT_TRUE(absl::IsInvalidArgument(cache.status())) << name;
    EXPECT_THAT(std::string(cache.status().message()), HasSubstr(name));
  }
}

TEST_F(CacheFileTest, NamesMetadataThatIsNoNumber) {
  formats::Safetensors file = SmallCache().File();
  const SmallCache small;
  file = small.File();
  file.metadata["logical_tokens"] = "-3";
  const auto cache = CacheFile::Open(Write("bad", file));
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("logical_tokens"));
}

TEST_F(CacheFileTest, CountsTheSlotsThatRaggedRowsHold) {
  const SmallCache small(3);
  const std::vector<int32_t> positions = {0, 4, 9, 0, 4, -1, 0, -1, -1, 2, 3, 4};
  formats::Safetensors file = small.File();
  file.tensors["positions"] = {"I32", {2, 2, 3}, SmallCache::Bytes(positions)};
  const auto cache = CacheFile::Open(Write("ragged", file));
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_THAT(cache->Lengths(), ElementsAre(3, 2, 1, 3));
  EXPECT_EQ(cache->LogicalTokens(), 10);
  EXPECT_TRUE(cache->Positions().per_head());
}

TEST_F(CacheFileTest, WantsATableBesidePackedBlocks) {
  const std::vector<int32_t> numbers(4);
  formats::Safetensors file;
  file.metadata["head_dim"] = "8";
  file.tensors["packed"] = {"U8", {16}, SmallCache::Bytes(numbers)};
  file.tensors["kept_counts"] = {"I32", {2, 2}, SmallCache::Bytes(numbers)};
  file.tensors["positions"] = {"I32", {2, 2, 1}, SmallCache::Bytes(numbers)};
  const auto cache = CacheFile::Open(Write("packed", file));
  EXPECT_THAT(std::string(cache.status().message()), HasSubstr("packed_table"));
}

}  // namespace
}  // namespace kvern::client
