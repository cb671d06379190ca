// A bound on what all calls together may buffer.
#ifndef KVERN_SERVER_RPC_BYTE_BUDGET_H_
#define KVERN_SERVER_RPC_BYTE_BUDGET_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace kvern::rpc {

// Thread-safe.
class ByteBudget {
 public:
  explicit ByteBudget(int64_t capacity_bytes) : capacity_bytes_(capacity_bytes) {}

  // What one call holds; given back with its life.
  class Share {
   public:
    explicit Share(ByteBudget* budget) : budget_(budget) {}
    ~Share() { budget_->Give(held_bytes_); }
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;
    // Errors: ResourceExhausted when others hold too much; a call that is alone always gets it, its
    // own limit being checked elsewhere.
    absl::Status Take(int64_t bytes);

   private:
    ByteBudget* const budget_;
    int64_t held_bytes_ = 0;
  };

 private:
  bool TryTake(int64_t bytes, int64_t held_bytes);
  void Give(int64_t bytes);

  const int64_t capacity_bytes_;
  absl::Mutex mutex_;
  int64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_BYTE_BUDGET_H_
