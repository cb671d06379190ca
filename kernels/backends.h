// Which backends this build contains, and how to get one.
#ifndef KVERN_KERNELS_BACKENDS_H_
#define KVERN_KERNELS_BACKENDS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace kvern {

struct BackendOptions {
  std::string name = "auto";             // "auto", or one of BackendNames()
  std::string instruction_set = "auto";  // "auto", or one of InstructionSets(): cpu only
  int threads = 0;                       // 0: one per core
  std::string device = "0";              // index or UUID: cuda only, as all below
  int64_t scratch_bytes = 0;  // reserved at start; 0: a quarter of what is free, <= 8 GiB
  int64_t store_bytes = 0;    // reserved beside it, for what is allocated once and kept
  double hang_seconds = 10;   // a wait that takes longer finds the device lost
};

// Errors: InvalidArgument names what is known; FailedPrecondition when this machine lacks the
// instruction set or the device asked for.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

// What `auto` takes, and why: cuda where a device answers, else the cpu.
struct ChosenBackend {
  std::unique_ptr<Backend> backend;
  std::string reason;  // empty when the backend was named
};
absl::StatusOr<ChosenBackend> ChooseBackend(const BackendOptions& options);

std::vector<std::string> BackendNames();  // "ref", "cpu", and "cuda" where it was built
std::vector<std::string>
InstructionSets();  // those of the cpu backend this machine runs, best last

}  // namespace kvern

#endif  // KVERN_KERNELS_BACKENDS_H_
