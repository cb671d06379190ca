// The engine without a wire: the same pool geometry and policy as the frontend's calls, so that the
// difference between both is what the wire costs.
#ifndef KVERN_TESTS_BENCH_IN_PROCESS_H_
#define KVERN_TESTS_BENCH_IN_PROCESS_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backends.h"
#include "server/engine/engine.h"

namespace kvern::bench {

class InProcess {
 public:
  // With a pool of `sequences` sequences of `tokens` tokens and room for half of each.
  struct Options {
    BackendOptions backend = {.name = "cpu"};
    int64_t tokens = 0;
    int sequences = 1;
  };
  static absl::StatusOr<std::unique_ptr<InProcess>> Start(const Options& options);

  // A call of the frontend's policy over all sequences, whose epoch is higher than that of the one
  // before.
  engine::CompressJob Job(pipeline::Placement placement);
  // Waits for the answer. Errors: of the call, of any sequence.
  absl::Status Call(engine::CompressJob job);

 private:
  explicit InProcess(const Options& options) : options_(options) {}
  absl::Status AddPool();

  const Options options_;
  uint64_t epoch_ = 0;
  std::unique_ptr<engine::Engine> engine_;
};

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_IN_PROCESS_H_
