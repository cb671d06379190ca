// Kernels with one bug each, and their twins without it: what the emulator's builds are measured
// by.
#ifndef KVERN_TESTS_SIMT_PLANTED_PLANTED_H_
#define KVERN_TESTS_SIMT_PLANTED_PLANTED_H_

#include <cstdint>

namespace simt::planted {

inline constexpr int kWords = 900;  // of each array; not a whole number of 256 bytes

struct Buffers {
  const uint32_t* in = nullptr;  // device, in[i] = i * i + 1
  uint32_t* out = nullptr;       // device, zeros
  uint32_t* raw = nullptr;       // device, never written
  uint32_t* host = nullptr;      // not device memory
};

enum class Twin { kBad, kGood };

// Each launches one grid and throws what that throws.
using Run = void (*)(Twin twin, const Buffers& buffers);

// races.cu
void RunNeighbour(Twin twin, const Buffers& buffers);
void RunHistogramClear(Twin twin, const Buffers& buffers);
void RunDigitChoice(Twin twin, const Buffers& buffers);
void RunLoopEnd(Twin twin, const Buffers& buffers);
void RunBufferReuse(Twin twin, const Buffers& buffers);
void RunLockStep(Twin twin, const Buffers& buffers);
void RunShuffleAsFence(Twin twin, const Buffers& buffers);

// updates.cu
void RunLostUpdateShared(Twin twin, const Buffers& buffers);
void RunLostUpdateGlobal(Twin twin, const Buffers& buffers);
void RunOtherBlock(Twin twin, const Buffers& buffers);
void RunOneWord(Twin twin, const Buffers& buffers);
void RunAtomicAndPlain(Twin twin, const Buffers& buffers);

// addresses.cu
void RunSharedOverrun(Twin twin, const Buffers& buffers);
void RunDynamicOverrun(Twin twin, const Buffers& buffers);
void RunGlobalOverrun(Twin twin, const Buffers& buffers);
void RunGlobalUnderrun(Twin twin, const Buffers& buffers);
void RunUninitialisedShared(Twin twin, const Buffers& buffers);
void RunUninitialisedGlobal(Twin twin, const Buffers& buffers);
void RunMisalignedVector(Twin twin, const Buffers& buffers);
void RunHostPointer(Twin twin, const Buffers& buffers);
void RunNullPointer(Twin twin, const Buffers& buffers);

// meetings.cu
void RunDivergentShuffle(Twin twin, const Buffers& buffers);
void RunInactiveLane(Twin twin, const Buffers& buffers);
void RunOutsideMask(Twin twin, const Buffers& buffers);
void RunDifferentMasks(Twin twin, const Buffers& buffers);
void RunDivergentBarrier(Twin twin, const Buffers& buffers);
void RunEarlyReturn(Twin twin, const Buffers& buffers);
void RunMissedBarrier(Twin twin, const Buffers& buffers);

}  // namespace simt::planted

#endif  // KVERN_TESTS_SIMT_PLANTED_PLANTED_H_
