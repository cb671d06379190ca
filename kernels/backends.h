// Which backends this build contains, and how to get one.
#ifndef KVERN_KERNELS_BACKENDS_H_
#define KVERN_KERNELS_BACKENDS_H_

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
};

// Errors: InvalidArgument names what is known; FailedPrecondition when this machine lacks the
// instruction set asked for.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options);

std::vector<std::string> BackendNames();  // "ref", "cpu"
std::vector<std::string>
InstructionSets();  // those of the cpu backend this machine runs, best last

}  // namespace kvern

#endif  // KVERN_KERNELS_BACKENDS_H_
