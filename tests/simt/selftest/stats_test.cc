// The counters of the check build see strides as a GPU would.
#include <gtest/gtest.h>

#include "simt/build.h"
#include "simt/config.h"
#include "simt/device_array.h"
#include "simt/grid.h"
#include "simt/mem_stats.h"
#include "simt/selftest/kernels.h"

namespace simt {
namespace {

// Stride of 4-byte words; sectors of the read of device memory, passes of the read of shared
// memory.
struct Expected {
  int stride;
  uint64_t sectors;
  uint64_t passes;
};

TEST(MemStats, CountsSectorsAndBankConflicts) {
  if constexpr (kChecking) {
    const Config before = Current();
    Current().profile = true;
    const DeviceArray<uint32_t> in(std::vector<uint32_t>(1024));
    const DeviceArray<uint32_t> out(32);
    for (const Expected& expected :
         {Expected{1, 4, 1}, Expected{2, 8, 2}, Expected{8, 32, 8}, Expected{31, 32, 1}}) {
      TakeMemStats();
      selftest::RunStride({in.data(), out.data(), expected.stride});
      const std::vector<MemStats> all = TakeMemStats();
      EXPECT_EQ(all.size(), 4u);  // reads and writes of both memories
      for (const MemStats& stats : all) {
        EXPECT_EQ(stats.requests, 1u) << stats.line;
        EXPECT_NE(stats.line.find("kernels.cu:"), std::string::npos) << stats.line;
        if (stats.shared) {
          EXPECT_EQ(stats.transfers, expected.passes) << stats.line << " " << expected.stride;
          EXPECT_EQ(stats.ideal, 1u);
        } else {
          EXPECT_EQ(stats.transfers, stats.write ? 4 : expected.sectors) << stats.line;
          EXPECT_EQ(stats.ideal, 4u);
        }
      }
    }
    EXPECT_TRUE(TakeMemStats().empty());
    Current() = before;
  } else {
    GTEST_SKIP() << "only the check build counts";
  }
}

// RunSums reads 32 words.
[[maybe_unused]] bool SumsReport(const int32_t* in) {
  const DeviceArray<int64_t> out(1);
  try {
    selftest::RunSums(1, 32, {in, out.data()});
  } catch (const Error& error) {
    EXPECT_EQ(error.fault, Fault::kUninitialised) << error.what();
    return true;
  }
  return false;
}

TEST(Uninitialised, FollowsCopies) {
  if constexpr (kChecking) {
    const DeviceArray<int32_t> never(32);
    const DeviceArray<int32_t> copy(32);
    EXPECT_TRUE(SumsReport(never.data()));
    NoteHostWrite(copy.data(), 32 * sizeof(int32_t) - 1);
    EXPECT_TRUE(SumsReport(copy.data()));
    NoteHostWrite(copy.data() + 31, sizeof(int32_t));
    EXPECT_FALSE(SumsReport(copy.data()));
    NoteDeviceCopy(copy.data() + 5, never.data(), 1);
    EXPECT_TRUE(SumsReport(copy.data()));
  } else {
    GTEST_SKIP() << "only the check build knows who wrote";
  }
}

}  // namespace
}  // namespace simt
