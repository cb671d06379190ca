// Epochs decide whether a caller's view is current; positions spare it from sending them.
#include "server/engine/sequence_memory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"

namespace kvern::engine {
namespace {

int64_t BytesOf(const RememberedSlots* slots) {
  return slots == nullptr ? 0 : static_cast<int64_t>(slots->positions.capacity() * sizeof(int32_t));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const RememberedSlots>> SequenceMemory::Look(
    const std::string& sequence_id, uint64_t epoch) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(sequence_id);
  if (found == entries_.end()) return std::shared_ptr<const RememberedSlots>();
  const Entry& entry = found->second;
  if (epoch < entry.epoch) {
    return WithReason(absl::AbortedError(
                          absl::StrCat("epoch: got ", epoch, ", want ", entry.epoch, " or higher")),
                      "EPOCH_MISMATCH");
  }
  used_.splice(used_.end(), used_, entry.used);
  return epoch == entry.epoch ? entry.slots : nullptr;
}

void SequenceMemory::Remember(const std::string& sequence_id, uint64_t epoch,
                              std::shared_ptr<const RememberedSlots> slots) {
  absl::MutexLock lock(&mutex_);
  bytes_ += BytesOf(slots.get());
  const auto [found, is_new] = entries_.try_emplace(sequence_id);
  Entry& entry = found->second;
  if (is_new) {
    entry.used = used_.insert(used_.end(), sequence_id);
  } else {
    bytes_ -= BytesOf(entry.slots.get());
    used_.splice(used_.end(), used_, entry.used);
  }
  entry.epoch = epoch;
  entry.slots = std::move(slots);
  while (static_cast<int64_t>(entries_.size()) > max_sequences_ || bytes_ > max_bytes_) {
    Erase(std::string(used_.front()));
  }
}

bool SequenceMemory::Forget(const std::string& sequence_id) {
  absl::MutexLock lock(&mutex_);
  const bool known = entries_.contains(sequence_id);
  Erase(sequence_id);
  return known;
}

int64_t SequenceMemory::Count() const {
  absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(entries_.size());
}

void SequenceMemory::Erase(const std::string& sequence_id) {
  const auto found = entries_.find(sequence_id);
  if (found == entries_.end()) return;
  bytes_ -= BytesOf(found->second.slots.get());
  used_.erase(found->second.used);
  entries_.erase(found);
}

}  // namespace kvern::engine
