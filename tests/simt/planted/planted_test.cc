// Each planted bug is found by the builds that claim to find it, and no build accuses a twin. A bug
// that a build now finds beyond its claim fails too: the claims are what readers rely on.
#include "simt/planted/planted.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ostream>
#include <string>
#include <vector>

#include "simt/build.h"
#include "simt/config.h"
#include "simt/device_array.h"
#include "simt/grid.h"

namespace simt::planted {
namespace {

constexpr int kSeeds = 10;
constexpr bool kFound = true;
constexpr bool kMissed = false;

struct Bug {
  const char* name;
  Run run;
  Fault fault;  // as the check build calls it, in forward order
  bool plain;   // found by comparing schedules
  bool asan;
};

constexpr Bug kBugs[] = {
    {"Neighbour", RunNeighbour, Fault::kUninitialised, kFound, kFound},
    {"HistogramClear", RunHistogramClear, Fault::kUninitialised, kFound, kFound},
    {"DigitChoice", RunDigitChoice, Fault::kRace, kFound, kFound},
    {"LoopEnd", RunLoopEnd, Fault::kRace, kFound, kFound},
    {"BufferReuse", RunBufferReuse, Fault::kRace, kFound, kFound},
    {"LockStep", RunLockStep, Fault::kUninitialised, kFound, kFound},
    {"ShuffleAsFence", RunShuffleAsFence, Fault::kRace, kMissed, kMissed},
    {"LostUpdateShared", RunLostUpdateShared, Fault::kRace, kMissed, kMissed},
    {"LostUpdateGlobal", RunLostUpdateGlobal, Fault::kRace, kMissed, kMissed},
    {"OtherBlock", RunOtherBlock, Fault::kRace, kFound, kFound},
    {"OneWord", RunOneWord, Fault::kRace, kFound, kFound},
    {"AtomicAndPlain", RunAtomicAndPlain, Fault::kRace, kFound, kFound},
    {"SharedOverrun", RunSharedOverrun, Fault::kOutOfBounds, kFound, kFound},
    {"DynamicOverrun", RunDynamicOverrun, Fault::kOutOfBounds, kFound, kFound},
    {"GlobalOverrun", RunGlobalOverrun, Fault::kOutOfBounds, kMissed, kFound},
    {"GlobalUnderrun", RunGlobalUnderrun, Fault::kOutOfBounds, kMissed, kFound},
    {"UninitialisedShared", RunUninitialisedShared, Fault::kUninitialised, kMissed, kMissed},
    {"UninitialisedGlobal", RunUninitialisedGlobal, Fault::kUninitialised, kMissed, kMissed},
    {"MisalignedVector", RunMisalignedVector, Fault::kMisaligned, kFound, kFound},
    {"HostPointer", RunHostPointer, Fault::kNotDevice, kMissed, kMissed},
    {"NullPointer", RunNullPointer, Fault::kNotDevice, kFound, kFound},
    {"DivergentShuffle", RunDivergentShuffle, Fault::kCollective, kFound, kFound},
    {"InactiveLane", RunInactiveLane, Fault::kCollective, kFound, kFound},
    {"OutsideMask", RunOutsideMask, Fault::kCollective, kFound, kFound},
    {"DifferentMasks", RunDifferentMasks, Fault::kCollective, kFound, kFound},
    {"DivergentBarrier", RunDivergentBarrier, Fault::kBarrier, kFound, kFound},
    {"EarlyReturn", RunEarlyReturn, Fault::kBarrier, kFound, kFound},
    {"MissedBarrier", RunMissedBarrier, Fault::kDeadlock, kFound, kFound},
};

void PrintTo(const Bug& bug, std::ostream* out) { *out << bug.name; }

std::vector<unsigned char> Output(Run run, Twin twin) {
  std::vector<uint32_t> values(kWords);
  for (uint32_t i = 0; i < kWords; ++i) values[i] = i * i + 1;
  const DeviceArray<uint32_t> in(values);
  const DeviceArray<uint32_t> out{std::vector<uint32_t>(kWords)};
  const DeviceArray<uint32_t> raw(kWords);
  run(twin, {in.data(), out.data(), raw.data(), values.data()});
  return out.Bytes();
}

ScheduleReport Check(Run run, Twin twin) {
  return CheckSchedules(kSeeds, [&] { return Output(run, twin); });
}

// Whether a process of its own reports the bug or dies of it: AddressSanitizer ends the process.
bool FoundInAChild(Run run) {
  const pid_t child = fork();
  if (child == 0) {
    close(STDERR_FILENO);
    _exit(Check(run, Twin::kBad).clean() ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status != 0;
}

class Planted : public testing::TestWithParam<Bug> {};

TEST_P(Planted, IsFound) {
  const Bug& bug = GetParam();
  if (kChecking) {
    const Config before = Current();
    Current().order = Order::kForward;
    try {
      Output(bug.run, Twin::kBad);
      FAIL() << "the forward order alone has to show it";
    } catch (const Error& error) {
      EXPECT_EQ(error.fault, bug.fault) << error.what();
      EXPECT_NE(std::string(error.what()).find("block "), std::string::npos);
      std::printf("%s\n", error.what());
    }
    Current() = before;
  } else if (SIMT_ASAN) {
    EXPECT_EQ(FoundInAChild(bug.run), bug.asan);
  } else {
    const ScheduleReport report = Check(bug.run, Twin::kBad);
    EXPECT_EQ(!report.clean(), bug.plain) << report.problem;
    std::printf("%s\n", report.problem.c_str());
  }
}

TEST_P(Planted, TwinIsClean) { EXPECT_EQ(Check(GetParam().run, Twin::kGood).problem, ""); }

INSTANTIATE_TEST_SUITE_P(All, Planted, testing::ValuesIn(kBugs),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace simt::planted
