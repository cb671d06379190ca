// The stages that are measured on a device, each as a call that can be repeated.
#ifndef KVERN_TESTS_BENCH_GPU_STAGES_H_
#define KVERN_TESTS_BENCH_GPU_STAGES_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "tests/bench/gpu/device_cache.h"

namespace kvern::bench {

struct Stage {
  std::string name;         // as in tests/gates/model.py
  int64_t floor_bytes = 0;  // what must cross the memory bus once
  std::function<absl::Status(Backend&)> run;
};

// Everything that the stages read and write; lives as long as they do.
class StageInputs;

struct Stages {
  std::shared_ptr<StageInputs> inputs;
  std::vector<Stage> stages;
};
// `kept` tokens per row out of shape.tokens. Errors: of Allocate.
absl::StatusOr<Stages> MakeStages(Backend& backend, const CacheShape& shape, int64_t kept);

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_GPU_STAGES_H_
