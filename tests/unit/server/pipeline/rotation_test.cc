// Rotation tables: shared rows, exact long phases, per-head positions.
#include "server/pipeline/rotation.h"

#include <cmath>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "server/pipeline/rope_angles.h"

namespace kvern::pipeline {
namespace {

RopeSpec TwoBands() {
  RopeSpec rope;
  rope.inv_freq = {1.0f, 0.01f};
  return rope;
}

TEST(Rotation, SharesARowBetweenSlotsAtTheSamePosition) {
  const std::vector<int32_t> positions = {5, 9, 5, 9, 7};
  const RotationTable table = BuildRotation(TwoBands(), {positions, 0, 5});
  EXPECT_EQ(table.cosine.size(), 3u * 2);
  EXPECT_EQ(table.Row(0, 0, 0), table.Row(0, 0, 2));
  EXPECT_EQ(table.Row(0, 0, 1), table.Row(0, 0, 3));
  EXPECT_NE(table.Row(0, 0, 0), table.Row(0, 0, 4));
  EXPECT_EQ(table.Row(3, 1, 4), table.Row(0, 0, 4)) << "one row of slots for all heads";
}

TEST(Rotation, RoundsAnExactPhaseOnceAtAPositionOfAMillion) {
  const std::vector<int32_t> positions = {1000001};
  const RopeSpec rope = TwoBands();
  const RotationTable table = BuildRotation(rope, {positions, 0, 1});
  for (int band = 0; band < 2; ++band) {
    const double phase = 1000001.0 * rope.inv_freq[band];
    EXPECT_FLOAT_EQ(table.cosine[band], static_cast<float>(std::cos(phase)));
    EXPECT_FLOAT_EQ(table.sine[band], static_cast<float>(std::sin(phase)));
  }
}

TEST(Rotation, KeepsThePositionsOfHeadsApart) {
  const std::vector<int32_t> positions = {0, 1, 0, 2, 0, 3, 0, 4};  // [2 layers, 2 heads, 2 tokens]
  const RotationTable table = BuildRotation(TwoBands(), {positions, 2, 2});
  for (int row = 0; row < 4; ++row) {
    const int64_t at = table.Row(row / 2, row % 2, 1);
    EXPECT_FLOAT_EQ(table.cosine[at * 2], std::cos(static_cast<float>(row + 1)));
  }
}

TEST(Rotation, GivesEmptySlotsTheRowOfPositionZero) {
  const std::vector<int32_t> positions = {0, 3, -1, -1};
  const RotationTable table = BuildRotation(TwoBands(), {positions, 1, 2});
  EXPECT_EQ(table.Row(1, 0, 0), table.Row(0, 0, 0));
  EXPECT_EQ(table.cosine[table.Row(1, 0, 1) * 2], 1.0f);
}

TEST(Rotation, IsPureWhateverTheAttentionScaling) {
  RopeSpec rope = TwoBands();
  rope.attention_scaling = 1.3;
  const std::vector<int32_t> positions = {11};
  const RotationTable table = BuildRotation(rope, {positions, 0, 1});
  EXPECT_NEAR(table.cosine[0] * table.cosine[0] + table.sine[0] * table.sine[0], 1.0, 1e-6);
}

TEST(Rotation, SharesTheAnglesOfAModelAndGivesTheSameValues) {
  RopeSpec rope = TwoBands();
  const RopeSpec alone = rope;
  rope.angles = std::make_shared<RopeAngles>();
  const std::vector<std::vector<int32_t>> slots = {
      {5, 9, 5, 9, 7}, {100, 101, 102}, {-1, 3, 4, 2}, {0}, {}, {7, 1'000'000}, {0, 5000}};
  for (const std::vector<int32_t>& positions : slots) {
    const auto tokens = static_cast<int64_t>(positions.size());
    const RotationTable table = BuildRotation(rope, {positions, 0, tokens});
    const RotationTable want = BuildRotation(alone, {positions, 0, tokens});
    for (int64_t slot = 0; slot < tokens; ++slot) {
      for (int64_t band = 0; band < 2; ++band) {
        EXPECT_EQ(table.cosine[table.Row(0, 0, slot) * 2 + band],
                  want.cosine[want.Row(0, 0, slot) * 2 + band]);
        EXPECT_EQ(table.sine[table.Row(0, 0, slot) * 2 + band],
                  want.sine[want.Row(0, 0, slot) * 2 + band]);
      }
    }
  }
  EXPECT_EQ(BuildRotation(rope, {slots[1], 0, 3}).cosine.size(), 3u * 2);
  EXPECT_EQ(BuildRotation(rope, {slots[1], 0, 3}).angles,
            BuildRotation(rope, {slots[3], 0, 1}).angles);
}

TEST(RopeAngles, KeepsNoMoreThanTheLimitOfAllModels) {
  const std::vector<float> bands(256, 0.5f);  // 2 KiB per position
  const int64_t before = RopeAngles::KeptBytes();
  {
    RopeAngles one, other;
    const auto all = one.First(bands, 100'000);
    EXPECT_EQ(RopeAngles::KeptBytes() - before, int64_t{100'000} * 2048);
    const auto more = other.First(bands, 50'000);
    EXPECT_EQ(more->cosine.size(), 50'000u * 256);
    EXPECT_EQ(RopeAngles::KeptBytes() - before, int64_t{100'000} * 2048) << "not kept";
    EXPECT_EQ(more->cosine[256 * 40'000], all->cosine[256 * 40'000]);
  }
  EXPECT_EQ(RopeAngles::KeptBytes(), before);
}

TEST(Rotation, OfConsecutiveSlotsStartsAtZero) {
  const RotationTable table = BuildConsecutiveRotation(TwoBands(), 3);
  EXPECT_EQ(table.cosine.size(), 3u * 2);
  EXPECT_EQ(table.cosine[table.Row(0, 0, 0) * 2], 1.0f);
  EXPECT_FLOAT_EQ(table.sine[table.Row(0, 0, 2) * 2], std::sin(2.0f));
}

}  // namespace
}  // namespace kvern::pipeline
