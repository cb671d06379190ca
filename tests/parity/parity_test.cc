// The harness itself: it must see what parity tests are there to catch.
#include "tests/parity/parity.h"

#include <algorithm>
#include <string>

#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"

namespace kvern::support {
namespace {

// Writes zeros; anything but ref also writes `wrong` at `index`.
absl::Status WriteZeros(Backend& backend, ScoreView scores, int64_t index, float wrong) {
  std::fill_n(scores.data, scores.Size(), 0.0f);
  if (backend.Name() != "ref") scores.data[index] = wrong;
  return absl::OkStatus();
}

TEST(ExpectScoreParity, SeesASignOfZeroThatDiffersFromRef) {
  ::testing::TestPartResultArray failures;
  {
    ::testing::ScopedFakeTestPartResultReporter intercept(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
    ExpectScoreParity(1, 1, 8, [](Backend& backend, ScoreView scores) {
      return WriteZeros(backend, scores, /*index=*/5, -0.0f);
    });
  }
  // One and two threads of every instruction set, or cuda alone.
  const bool cuda = BackendNames().back() == "cuda";
  ASSERT_EQ(failures.size(), cuda ? 1 : static_cast<int>(2 * InstructionSets().size()));
  EXPECT_NE(std::string(failures.GetTestPartResult(0).message()).find("score 5 of 8"),
            std::string::npos);
}

TEST(ExpectScoreParity, SeesAWritePastTheOutput) {
  ::testing::TestPartResultArray failures;
  {
    ::testing::ScopedFakeTestPartResultReporter intercept(
        ::testing::ScopedFakeTestPartResultReporter::INTERCEPT_ONLY_CURRENT_THREAD, &failures);
    ExpectScoreParity(1, 1, 8, [](Backend& backend, ScoreView scores) {
      return WriteZeros(backend, scores, /*index=*/8, 1.0f);
    });
  }
  ASSERT_GT(failures.size(), 0);
  EXPECT_NE(std::string(failures.GetTestPartResult(0).message()).find("write past the output"),
            std::string::npos);
}

}  // namespace
}  // namespace kvern::support
