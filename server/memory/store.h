// The resident store: sequences in pages of one piece of memory whose size is fixed at start.
#ifndef KVERN_SERVER_MEMORY_STORE_H_
#define KVERN_SERVER_MEMORY_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/base/kv_ref.h"
#include "kernels/base/packed_layout.h"
#include "server/memory/byte_access.h"
#include "server/memory/store_memory.h"

namespace kvern::memory {

inline constexpr int32_t kStoreBlockTokens = 64;

// What is known of a stored sequence; immutable once stored (an append makes a new one).
struct StoredInfo {
  std::string id;
  std::string model;
  std::vector<int32_t> layer_indices;
  DType dtype = DType::kBF16;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int64_t num_tokens = 0;  // longest (layer, kv_head)
  int64_t logical_tokens = 0;
  uint64_t epoch = 0;
  std::vector<int32_t> lengths;    // [layers * kv_heads], or empty: all num_tokens
  std::vector<int32_t> positions;  // [num_tokens] or [layers, kv_heads, num_tokens]
  bool per_head_positions = false;
  std::string k_codec = "raw16";
  std::string v_codec = "raw16";
  std::vector<PackedRow> table;   // packed sequences
  std::vector<Float16> mean_key;  // packed with rm
};

// A stored sequence's bytes: pages of the store, freed when the last holder lets go and zero when
// they are given out again. Keys, Values and Blocks are addresses for ops of the backend; where the
// store lies on a device the host cannot follow them, and goes through CopyIn and CopyOut.
class StoredSequence : public ByteAccess {
 public:
  virtual const StoredInfo& Info() const = 0;
  virtual bool Packed() const = 0;
  // Dense sequences: views of one layer, paged over the store.
  virtual KvRef Keys(int64_t layer_slot) const = 0;
  virtual KvRef Values(int64_t layer_slot) const = 0;
  // Packed sequences: the blocks, contiguous.
  virtual std::span<std::byte> Blocks() const = 0;
  // The mean key that encoding into Blocks() found. Before Publish only.
  virtual void SetMeanKey(std::vector<Float16> mean_key) = 0;
  virtual int64_t StoredBytes() const = 0;  // pages held, in bytes
};

// Thread-safe.
class Store {
 public:
  // Sequences keep the memory beyond the store.
  static std::unique_ptr<Store> Create(std::unique_ptr<StoreMemory> memory, int64_t max_sequences);
  virtual ~Store() = default;

  // Room for a sequence that is filled by the caller and then committed. Evicts released sequences,
  // least recently used first, until it fits. Its bytes are zero. Errors: ResourceExhausted,
  // nothing changes then; of the backend that zeroes pages on a device.
  virtual absl::StatusOr<std::shared_ptr<StoredSequence>> AllocateDense(StoredInfo info) = 0;
  virtual absl::StatusOr<std::shared_ptr<StoredSequence>> AllocatePacked(StoredInfo info,
                                                                         int64_t block_bytes) = 0;
  // Publishes it under its id. kReplace atomically replaces the sequence of that id if its epoch
  // still is `replace_epoch`. Above max_sequences the least recently used released one goes.
  // Errors: AlreadyExists; NotFound/SEQUENCE_UNKNOWN (kReplace); Aborted/EPOCH_MISMATCH;
  // ResourceExhausted above max_sequences with none released.
  enum class Commit : uint8_t { kNew, kReplace };
  virtual absl::Status Publish(std::shared_ptr<StoredSequence> sequence, Commit commit,
                               uint64_t replace_epoch) = 0;

  // Errors: NotFound/SEQUENCE_UNKNOWN. Marks it used now and not released.
  virtual absl::StatusOr<std::shared_ptr<StoredSequence>> Find(const std::string& id) = 0;
  // The same, but only looks. Held, it cannot be evicted; a caller that succeeds marks it by Touch.
  virtual absl::StatusOr<std::shared_ptr<StoredSequence>> Peek(const std::string& id) const = 0;
  // Marks it used now and not released; nothing when unknown.
  virtual void Touch(const std::string& id) = 0;
  virtual std::vector<std::shared_ptr<StoredSequence>> List() const = 0;
  virtual bool Delete(const std::string& id) = 0;
  // Lets it be evicted. False when unknown.
  virtual bool Release(const std::string& id) = 0;
  virtual bool IsReleased(const std::string& id) const = 0;

  virtual bool OnDevice() const = 0;
  virtual int64_t CapacityBytes() const = 0;
  virtual int64_t UsedBytes() const = 0;
  virtual int64_t Evictions() const = 0;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_STORE_H_
