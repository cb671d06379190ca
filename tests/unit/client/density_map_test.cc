// Pictures: full means all, blank means none.
#include "client/cli/density_map.h"

#include <numeric>

#include "client/cli/console.h"
#include "client/cli/text_table.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvern::cli {
namespace {

using ::testing::DoubleNear;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Density, AddsUpToTheSlotsHeldWhateverTheWidth) {
  const int64_t total = 103;
  std::vector<int32_t> held;
  for (int32_t slot = 0; slot < total; slot += 3) held.push_back(slot);
  for (int columns = 1; columns <= 110; ++columns) {
    const std::vector<double> density = Density(held, total, columns);
    ASSERT_EQ(std::ssize(density), std::min<int64_t>(columns, total));
    double slots = 0;
    const int64_t cells = std::ssize(density);
    for (int64_t cell = 0; cell < cells; ++cell) {
      slots +=
          density[cell] * static_cast<double>(total * (cell + 1) / cells - total * cell / cells);
    }
    EXPECT_NEAR(slots, static_cast<double>(held.size()), 1e-9) << columns;
  }
}

TEST(Density, IsOneEverywhereWhenNothingWasDropped) {
  std::vector<int32_t> held(1024);
  std::iota(held.begin(), held.end(), 0);
  EXPECT_THAT(Density(held, 1024, 77), Each(DoubleNear(1, 1e-9)));
}

TEST(Density, IgnoresSlotsOutsideTheAxis) {
  EXPECT_THAT(Density(std::vector<int32_t>{-1, 0, 4, 99}, 4, 4), ElementsAre(1, 0, 0, 0));
}

TEST(Density, IsEmptyForAnEmptyAxis) {
  EXPECT_THAT(Density(std::vector<int32_t>{0}, 0, 10), IsEmpty());
  EXPECT_THAT(Density(std::vector<int32_t>{0}, 10, 0), IsEmpty());
}

TEST(DensityLine, ShowsBlankOnlyForNothingAndFullOnlyForAll) {
  EXPECT_EQ(DensityLine(std::vector<double>{0, 1e-6, 0.5, 0.999999, 1}), " ░▒▓█");
}

TEST(Bar, GrowsByEighthsAndNeverHidesSomething) {
  EXPECT_EQ(Bar(0, 8), "");
  EXPECT_EQ(Bar(1e-9, 8), "▏");
  EXPECT_EQ(Bar(0.5, 3), "█▌");
  EXPECT_EQ(Bar(1, 4), "████");
  EXPECT_EQ(Bar(7, 4), "████");
}

TEST(TextTable, AlignsNumbersRightAndCountsCharactersNotBytes) {
  std::ostringstream out;
  const Console console{.out = out, .err = out, .width = 60};
  TextTable table({"name", "n", "what"});
  table.Add({"é", "7", "one"});
  table.Add({"abc", "1234", "two"});
  table.Print(console);
  EXPECT_EQ(out.str(),
            "name     n  what\n"
            "é        7  one\n"
            "abc   1234  two\n");
}

TEST(TextTable, WrapsTheLastColumnAtTheScreensEdge) {
  std::ostringstream out;
  const Console console{.out = out, .err = out, .width = 30};
  TextTable table({});
  table.Add({"a", "the quick brown fox jumps over the dog"});
  table.Print(console);
  EXPECT_EQ(out.str(), "a  the quick brown fox jumps\n   over the dog\n");
}

TEST(TextTable, EscapesBarsInMarkdown) {
  TextTable table({"a"});
  table.Add({"x|y"});
  EXPECT_EQ(table.Markdown(), "| a |\n|---|\n| x\\|y |\n");
}

TEST(Human, PicksUnitsThatFit) {
  EXPECT_EQ(HumanBytes(512), "512 B");
  EXPECT_EQ(HumanBytes(6 << 20), "6.0 MiB");
  EXPECT_EQ(HumanMicros(850), "850 us");
  EXPECT_EQ(HumanMicros(12300), "12.3 ms");
  EXPECT_EQ(HumanMicros(2'100'000), "2.10 s");
  EXPECT_EQ(HumanShare(0.63), "63 %");
}

}  // namespace
}  // namespace kvern::cli
