// The one place that knows which backends a build contains.
#include "kernels/backends.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/ref/ref_backend.h"
#if defined(KVERN_WITH_CUDA)
#include "kernels/cuda/cuda_backend.h"
#endif

namespace kvern {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> MakeCpu(const BackendOptions& options) {
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                         cpu::CpuBackend::Make(options.instruction_set, options.threads));
  return backend;
}

#if defined(KVERN_WITH_CUDA)
absl::StatusOr<std::unique_ptr<Backend>> MakeCuda(const BackendOptions& options) {
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                         cuda::CudaBackend::Make({.device = options.device,
                                                  .scratch_bytes = options.scratch_bytes,
                                                  .store_bytes = options.store_bytes,
                                                  .hang_seconds = options.hang_seconds}));
  return backend;
}
#else
absl::StatusOr<std::unique_ptr<Backend>> MakeCuda(const BackendOptions&) {
  return absl::InvalidArgumentError("backend: got cuda, which this build does not have; want " +
                                    absl::StrJoin(BackendNames(), ", ") +
                                    ", or a build with KVERN_CUDA=ON");
}
#endif

}  // namespace

absl::StatusOr<ChosenBackend> ChooseBackend(const BackendOptions& options) {
  ChosenBackend chosen;
  if (options.name == "ref") {
    chosen.backend = std::make_unique<ref::RefBackend>();
    return chosen;
  }
  if (options.name == "cpu") {
    KVERN_ASSIGN_OR_RETURN(chosen.backend, MakeCpu(options));
    return chosen;
  }
  if (options.name == "cuda") {
    KVERN_ASSIGN_OR_RETURN(chosen.backend, MakeCuda(options));
    return chosen;
  }
  if (options.name != "auto") {
    return absl::InvalidArgumentError(absl::StrCat("backend: got ", options.name, ", want auto, ",
                                                   absl::StrJoin(BackendNames(), ", ")));
  }
  // Who names an instruction set means the cpu.
  if (BackendNames().back() == "cuda" && options.instruction_set == "auto") {
    auto cuda = MakeCuda(options);
    if (cuda.ok()) {
      chosen.backend = *std::move(cuda);
      chosen.reason = "auto: a device answers";
      return chosen;
    }
    if (!absl::IsFailedPrecondition(cuda.status())) return cuda.status();
    chosen.reason = absl::StrCat("auto: no cuda: ", cuda.status().message());
  } else {
    chosen.reason = options.instruction_set == "auto" ? "auto: this build has no cuda"
                                                      : "auto: an instruction set was named";
  }
  KVERN_ASSIGN_OR_RETURN(chosen.backend, MakeCpu(options));
  return chosen;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const BackendOptions& options) {
  KVERN_ASSIGN_OR_RETURN(ChosenBackend chosen, ChooseBackend(options));
  return std::move(chosen.backend);
}

std::vector<std::string> BackendNames() {
#if defined(KVERN_WITH_CUDA)
  return {"ref", "cpu", "cuda"};
#else
  return {"ref", "cpu"};
#endif
}

std::vector<std::string> InstructionSets() { return cpu::InstructionSets(); }

}  // namespace kvern
