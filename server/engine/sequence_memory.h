// What the engine remembers of paged sequences between calls: epochs and rotary positions.
#ifndef KVERN_SERVER_ENGINE_SEQUENCE_MEMORY_H_
#define KVERN_SERVER_ENGINE_SEQUENCE_MEMORY_H_

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/base/reuse.h"

namespace kvern::engine {

// Whose slots they were: an id may come back with another pool or model.
struct SlotOwner {
  ScratchVector<char> model;  // ids
  ScratchVector<char> pool;
  int64_t rows = 0;  // layers * kv_heads
  bool operator==(const SlotOwner&) const = default;
};

// Positions of the slots a sequence held after its last call. Tokens that the frontend appends
// since continue at next_position.
struct RememberedSlots {
  ScratchVector<int32_t> positions;  // [tokens], or [layers, kv_heads, tokens] with -1 fills
  bool per_head = false;
  int64_t tokens = 0;  // of the longest row
  int64_t next_position = 0;
  SlotOwner owner = {};
};

// Thread-safe. Holds the most recently used sequences, by number and by bytes of positions; a
// sequence that fell out counts as never seen.
class SequenceMemory {
 public:
  SequenceMemory(int64_t max_sequences, int64_t max_bytes)
      : max_sequences_(max_sequences), max_bytes_(max_bytes) {}

  // What is remembered at this very epoch; null for an epoch first seen or higher (ruling 17).
  // Errors: Aborted/EPOCH_MISMATCH for a lower one.
  absl::StatusOr<std::shared_ptr<const RememberedSlots>> Look(const std::string& sequence_id,
                                                              uint64_t epoch);
  // `slots` null: nothing but the epoch.
  void Remember(const std::string& sequence_id, uint64_t epoch,
                std::shared_ptr<const RememberedSlots> slots);
  bool Forget(const std::string& sequence_id);
  int64_t Count() const;

 private:
  struct Entry {
    uint64_t epoch = 0;
    std::shared_ptr<const RememberedSlots> slots;
    std::list<std::string>::iterator used;
  };
  void Erase(const std::string& sequence_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t max_sequences_;
  const int64_t max_bytes_;
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<std::string> used_ ABSL_GUARDED_BY(mutex_);  // least recent first
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_SEQUENCE_MEMORY_H_
