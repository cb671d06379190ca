// One counter; whoever is alone may exceed it, so that nothing is refused for ever.
#include "server/rpc/byte_budget.h"

#include "absl/strings/str_cat.h"

namespace kvern::rpc {

absl::Status ByteBudget::Share::Take(int64_t bytes) {
  if (!budget_->TryTake(bytes, held_bytes_)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("got ", bytes, " bytes to buffer, want room in ", budget_->capacity_bytes_,
                     " that all calls share"));
  }
  held_bytes_ += bytes;
  return absl::OkStatus();
}

bool ByteBudget::TryTake(int64_t bytes, int64_t held_bytes) {
  const absl::MutexLock lock(&mutex_);
  const bool alone = used_bytes_ == held_bytes;
  if (!alone && bytes > capacity_bytes_ - used_bytes_) return false;
  used_bytes_ += bytes;
  return true;
}

void ByteBudget::Give(int64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  used_bytes_ -= bytes;
}

}  // namespace kvern::rpc
