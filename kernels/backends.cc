// The one place that knows which backends a build contains.
#include "kernels/backends.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ref/ref_backend.h"

namespace kvern {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  if (options.name == "ref") return std::make_unique<ref::RefBackend>();
  if (options.name == "cpu" || options.name == "auto") {
    KVERN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                           cpu::CpuBackend::Make(options.instruction_set, options.threads));
    return backend;
  }
  return absl::InvalidArgumentError(absl::StrCat("backend: got ", options.name, ", want auto, ",
                                                 absl::StrJoin(BackendNames(), ", ")));
}

std::vector<std::string> BackendNames() { return {"ref", "cpu"}; }

std::vector<std::string> InstructionSets() { return cpu::InstructionSets(); }

}  // namespace kvern
