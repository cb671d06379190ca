// Spreads the (layer, kv_head) problems of one op over a fixed set of threads.
#ifndef KVERN_KERNELS_CPU_RUNNER_H_
#define KVERN_KERNELS_CPU_RUNNER_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cpu/scratch.h"

namespace kvern::cpu {

// Threads live as long as the runner; the caller's thread works too. One ForEach at a time.
class Runner {
 public:
  explicit Runner(int threads);  // at least 1
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  int Threads() const;
  // Working memory of one worker, kept between calls; inside ForEach only that worker touches it.
  Scratch& ScratchOf(int worker);
  void Bind(const StopCheck* stop) { stop_ = stop; }
  // Ok while the bound check is (or none is bound). Ops ask between tiles.
  absl::Status Check() const { return stop_ == nullptr ? absl::OkStatus() : stop_->Check(); }

  // Runs work(item, worker) for item in [0, count), worker in [0, Threads()); items are handed out
  // in order, so results must not depend on who runs them. The first error stops further items and
  // is returned.
  absl::Status ForEach(int64_t count,
                       absl::FunctionRef<absl::Status(int64_t item, int worker)> work);

 private:
  struct State;
  std::unique_ptr<State> state_;
  const StopCheck* stop_ = nullptr;
};

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_RUNNER_H_
