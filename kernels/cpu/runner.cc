// Workers sleep on one condition variable between ops and take items from one shared counter.
#include "kernels/cpu/runner.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/base/status_macros.h"

namespace kvern::cpu {

using Work = absl::FunctionRef<absl::Status(int64_t item, int worker)>;

struct Runner::State {
  std::mutex mutex;
  std::condition_variable wake;  // a round began, or the end
  std::condition_variable idle;  // the last worker left the round
  int64_t round = 0;
  int busy = 0;
  bool ending = false;
  absl::Status first_error;

  std::atomic<int64_t> next{0};
  int64_t count = 0;
  const Work* work = nullptr;
  std::vector<std::thread> threads;
  std::vector<Scratch> scratch;

  void TakeItems(int worker) {
    for (int64_t item = next.fetch_add(1); item < count; item = next.fetch_add(1)) {
      absl::Status status = (*work)(item, worker);
      if (status.ok()) continue;
      next.store(count);
      const std::lock_guard<std::mutex> lock(mutex);
      if (first_error.ok()) first_error = std::move(status);
      return;
    }
  }

  void Serve(int worker) {
    int64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return ending || round != seen; });
      if (ending) return;
      seen = round;
      lock.unlock();
      TakeItems(worker);
      lock.lock();
      if (--busy == 0) idle.notify_one();
    }
  }
};

Runner::Runner(int threads) : state_(std::make_unique<State>()) {
  KVERN_CHECK(threads >= 1);
  state_->scratch.resize(threads);
  for (int worker = 1; worker < threads; ++worker) {
    state_->threads.emplace_back([state = state_.get(), worker] { state->Serve(worker); });
  }
}

Runner::~Runner() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->ending = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int Runner::Threads() const { return static_cast<int>(state_->threads.size()) + 1; }

Scratch& Runner::ScratchOf(int worker) { return state_->scratch[worker]; }

absl::Status Runner::ForEach(int64_t count, Work work) {
  if (count <= 0) return absl::OkStatus();
  State& state = *state_;
  {
    const std::lock_guard<std::mutex> lock(state.mutex);
    state.next.store(0);
    state.count = count;
    state.work = &work;
    state.first_error = absl::OkStatus();
    if (count > 1) {
      state.busy = static_cast<int>(state.threads.size());
      ++state.round;
    }
  }
  if (count > 1) state.wake.notify_all();
  state.TakeItems(/*worker=*/0);
  std::unique_lock<std::mutex> lock(state.mutex);
  state.idle.wait(lock, [&] { return state.busy == 0; });
  return std::move(state.first_error);
}

}  // namespace kvern::cpu
