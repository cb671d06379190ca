// Orthonormal at every head_dim, with the published signs and the documented blocks.
#include "kernels/base/hadamard.h"

#include <cmath>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvern {
namespace {

std::vector<float> Column(const Hadamard& hadamard, int32_t i) {
  std::vector<float> x(hadamard.head_dim, 0.0f);
  x[i] = 1.0f;
  RotateByHadamard(hadamard, x.data());
  return x;
}

double Dot(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}

TEST(Hadamard, IsOrthonormal) {
  for (const int32_t head_dim : {8, 24, 40, 56, 64, 72, 80, 88, 96, 112, 120, 128, 160, 256}) {
    SCOPED_TRACE(head_dim);
    const Hadamard& hadamard = HadamardOf(head_dim);
    std::vector<std::vector<float>> columns;
    for (int32_t i = 0; i < head_dim; ++i) columns.push_back(Column(hadamard, i));
    for (int32_t i = 0; i < head_dim; ++i) {
      for (int32_t j = 0; j <= i; ++j) {
        ASSERT_NEAR(Dot(columns[i], columns[j]), i == j ? 1.0 : 0.0, 1e-6) << i << " " << j;
      }
    }
  }
}

TEST(Hadamard, SpreadsEachCoordinateEvenlyOverItsBlock) {
  for (const int32_t head_dim : {64, 80, 88, 96, 1024}) {
    SCOPED_TRACE(head_dim);
    const Hadamard& hadamard = HadamardOf(head_dim);
    for (const HadamardBlock& block : hadamard.blocks) {
      const std::vector<float> column = Column(hadamard, block.first + block.Order() - 1);
      for (int32_t i = 0; i < head_dim; ++i) {
        const bool inside = i >= block.first && i < block.first + block.Order();
        ASSERT_EQ(std::fabs(column[i]), inside ? block.scale : 0.0f) << i;
      }
    }
  }
}

TEST(Hadamard, ComesBack) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  for (int32_t head_dim = 8; head_dim <= 1024; head_dim += 8) {
    std::vector<float> x(head_dim);
    for (float& value : x) value = normal(random);
    std::vector<float> y = x;
    RotateByHadamard(HadamardOf(head_dim), y.data());
    EXPECT_NEAR(Dot(y, y), Dot(x, x), 1e-5 * head_dim);
    UnrotateByHadamard(HadamardOf(head_dim), y.data());
    for (int32_t i = 0; i < head_dim; ++i) ASSERT_NEAR(y[i], x[i], 1e-5f) << head_dim;
  }
}

TEST(Hadamard, TakesSignsFromSplitMix64SeededWithTheHeadDim) {
  const auto first16 = [](int32_t head_dim) {
    const std::vector<float>& signs = HadamardOf(head_dim).signs;
    return std::vector<float>(signs.begin(), signs.begin() + 16);
  };
  EXPECT_THAT(first16(64),
              testing::ElementsAre(-1, -1, 1, 1, 1, -1, -1, 1, 1, -1, -1, 1, -1, 1, -1, 1));
  EXPECT_THAT(first16(128),
              testing::ElementsAre(1, 1, 1, -1, 1, -1, -1, 1, 1, 1, -1, -1, 1, 1, -1, -1));
}

TEST(Hadamard, SplitsAHeadDimWithoutAMatrixIntoTheLargestBlocks) {
  struct Case {
    int32_t head_dim;
    std::vector<int32_t> orders;
  };
  for (const Case& c : std::vector<Case>{{8, {8}},
                                         {24, {24}},
                                         {88, {80, 8}},
                                         {96, {96}},
                                         {104, {96, 8}},
                                         {128, {128}},
                                         {136, {128, 8}},
                                         {1000, {896, 96, 8}},
                                         {1024, {1024}}}) {
    std::vector<int32_t> orders;
    for (const HadamardBlock& block : HadamardOf(c.head_dim).blocks) {
      orders.push_back(block.Order());
    }
    EXPECT_EQ(orders, c.orders) << c.head_dim;
  }
}

}  // namespace
}  // namespace kvern
