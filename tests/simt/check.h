// What the check build learns from the emulator's own work.
#ifndef KVERN_TESTS_SIMT_CHECK_H_
#define KVERN_TESTS_SIMT_CHECK_H_

#include <cstddef>
#include <cstdint>

#include "simt/memory.h"

namespace simt::check {

// Called in the check build only.
void OnGridStart();
void OnGridEnd();
void OnBlockStart();
void OnBlockEnd();
void OnBarrier();                                  // opened: what came before is ordered
void OnSyncWarp(int warp, uint32_t participants);  // the same among these lanes
// Under the lock of the device memory's registry:
void OnAlloc(const Allocation& allocation);
void OnFree(const Allocation& allocation);
// For host code:
void OnHostWrite(const void* begin, size_t bytes);
void OnDeviceCopy(const void* to, const void* from, size_t bytes);

}  // namespace simt::check

#endif  // KVERN_TESTS_SIMT_CHECK_H_
