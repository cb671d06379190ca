// A table with any flaw is refused with its field; a sound one passes.
#include "server/memory/block_table.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "kernels/base/error_reason.h"

namespace kvern::memory {
namespace {

using ::testing::HasSubstr;

constexpr BlockTableSpec kSpec = {100, 16, 40, 8};  // 3 blocks

void ExpectRefused(const absl::Status& status, const std::string& text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FieldOf(status), "sequences[2].block_ids");
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}
absl::Status Validate(const BlockTableSpec& spec, const std::vector<uint32_t>& ids) {
  return ValidateBlockTable(spec, ids, "sequences[2].block_ids");
}

TEST(BlockTable, TakesAnyOrderOfDistinctIds) { EXPECT_TRUE(Validate(kSpec, {99, 0, 42}).ok()); }

TEST(BlockTable, TakesAnEmptyTableWhenThereAreNoTokens) {
  EXPECT_TRUE(Validate({100, 16, 0, 8}, {}).ok());
}

TEST(BlockTable, CountsBlocksExactly) {
  EXPECT_TRUE(Validate({100, 16, 48, 8}, {1, 2, 3}).ok());
  ExpectRefused(Validate({100, 16, 49, 8}, {1, 2, 3}), "want 4");
  ExpectRefused(Validate({100, 16, 32, 8}, {1, 2, 3}), "want 2");
  ExpectRefused(Validate({100, 16, 32, 8}, {}), "got 0 ids");
}

TEST(BlockTable, RejectsAnIdOutsideThePool) {
  ExpectRefused(Validate(kSpec, {1, 100, 2}), "id at 1 got 100, want below 100");
  ExpectRefused(Validate(kSpec, {1, 2, UINT32_MAX}), "id at 2");
  ExpectRefused(Validate({0, 16, 40, 8}, {0, 1, 2}), "want below 0");
}

TEST(BlockTable, RejectsAnIdGivenTwice) {
  ExpectRefused(Validate(kSpec, {7, 8, 7}), "id at 2 got 7 a second time");
}

TEST(BlockTable, RejectsATableLongerThanTheLimit) {
  ExpectRefused(Validate({100, 1, 9, 8}, {0, 1, 2, 3, 4, 5, 6, 7, 8}), "want at most 8");
}

TEST(BlockTable, RejectsNumbersThatMakeNoTable) {
  ExpectRefused(Validate({100, 0, 40, 8}, {0}), "blocks of 0");
  ExpectRefused(Validate({100, 16, -1, 8}, {}), "got -1 tokens");
  ExpectRefused(Validate({100, 1, std::numeric_limits<int64_t>::max(), 8}, {0}), "got 1 ids");
}

TEST(BlockTable, FindsOneFlawAmongManyIds) {
  std::mt19937 random(11);
  std::vector<uint32_t> sound(4096);
  std::iota(sound.begin(), sound.end(), 0u);
  std::shuffle(sound.begin(), sound.end(), random);
  const BlockTableSpec spec = {4096, 16, 4096 * 16, 4096};
  ASSERT_TRUE(Validate(spec, sound).ok());
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<uint32_t> ids = sound;
    const size_t at = random() % ids.size();
    ids[at] = trial % 2 == 0 ? 4096 + random() % 1000 : ids[(at + 1) % ids.size()];
    EXPECT_FALSE(Validate(spec, ids).ok()) << "trial " << trial;
  }
}

TEST(BlockTable, DestinationTakesAnyNumberOfFreshIds) {
  const std::string field = "sequences[2].block_ids";
  EXPECT_TRUE(ValidateDestination(kSpec, {}, {1, 2, 3}, field).ok());
  EXPECT_TRUE(ValidateDestination(kSpec, {4, 5, 6, 7}, {1, 2, 3}, field).ok());
}

TEST(BlockTable, DestinationRejectsSourceBlocksDuplicatesAndStrangers) {
  const std::string field = "sequences[2].block_ids";
  ExpectRefused(ValidateDestination(kSpec, {4, 2}, {1, 2, 3}, field), "a block of the source");
  ExpectRefused(ValidateDestination(kSpec, {4, 4}, {1, 2, 3}, field), "a second time");
  ExpectRefused(ValidateDestination(kSpec, {100}, {1, 2, 3}, field), "want below 100");
  ExpectRefused(ValidateDestination(kSpec, {4, 5, 6, 7, 8, 9, 10, 11, 12}, {1}, field),
                "want at most 8");
}

}  // namespace
}  // namespace kvern::memory
