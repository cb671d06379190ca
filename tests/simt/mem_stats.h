// How well the accesses of each source line use memory: 32-byte sectors of device memory, bank
// conflicts of shared memory. Counts are exact and the same in every run, so a test may bound them.
#ifndef KVERN_TESTS_SIMT_MEM_STATS_H_
#define KVERN_TESTS_SIMT_MEM_STATS_H_

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

struct MemStats {
  std::string kernel;  // with its template arguments
  std::string line;    // "file:line" of the access, or of the call of a loader that makes it
  bool shared = false;
  bool write = false;
  uint64_t requests = 0;  // instructions of a warp
  // Device memory: sectors touched, and how many the bytes would fill. Shared memory: passes over
  // the banks, and how many there would be without conflicts.
  uint64_t transfers = 0;
  uint64_t ideal = 0;
};

// Of all grids since the last call that ran with Config::profile. Check build only.
std::vector<MemStats> TakeMemStats();

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_MEM_STATS_H_
