// Sequences own runs of one arena; the store names them and evicts released ones to make room.
#include "server/memory/store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/memory/page_arena.h"

namespace kvern::memory {
namespace {

__extension__ using Wide = __int128;  // exact for products of untrusted sizes

absl::Status Unknown(const std::string& id) {
  return WithReason(
      absl::NotFoundError(absl::StrCat("sequence: got ", id,
                                       ", which is not stored or was evicted; want a stored "
                                       "sequence")),
      "SEQUENCE_UNKNOWN");
}

absl::Status ValidateInfo(const StoredInfo& info) {
  if (info.kv_heads < 1 || info.head_dim < 1 || info.num_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequence: got ", info.kv_heads, " kv_heads, head_dim ", info.head_dim, ", ",
                     info.num_tokens, " tokens; want 1 or more, 1 or more, 0 or more"));
  }
  if (info.lengths.empty()) return absl::OkStatus();
  const Wide want = Wide{info.kv_heads} * static_cast<int64_t>(info.layer_indices.size());
  if (static_cast<Wide>(info.lengths.size()) != want) {
    return absl::InvalidArgumentError(absl::StrCat("sequence: got ", info.lengths.size(),
                                                   " lengths, want one per layer and kv_head"));
  }
  for (const int32_t length : info.lengths) {
    if (length >= 0 && length <= info.num_tokens) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("sequence: a length got ", length, ", want 0 to ", info.num_tokens));
  }
  return absl::OkStatus();
}

// Pages that a sequence needs: `pieces` runs of `piece_pages` each.
struct PageDemand {
  int64_t piece_pages = 1;
  int64_t pieces = 0;
};

class PagedSequence final : public StoredSequence {
 public:
  PagedSequence(StoredInfo info, std::shared_ptr<PageArena> arena, std::vector<PageRun> runs)
      : info_(std::move(info)), arena_(std::move(arena)), runs_(std::move(runs)) {}
  ~PagedSequence() override { arena_->Free(runs_); }

  // Dense: names the pieces, layer by layer, keys before values.
  void NumberBlocks(int64_t piece_pages) {
    for (const PageRun& run : runs_) {
      for (int64_t page = 0; page < run.count; page += piece_pages) {
        block_ids_.push_back(static_cast<uint32_t>(run.first + page));
      }
    }
  }
  void SetPacked(int64_t block_bytes) {
    packed_ = true;
    packed_bytes_ = block_bytes;
  }

  const StoredInfo& Info() const override { return info_; }
  bool Packed() const override { return packed_; }
  KvRef Keys(int64_t layer_slot) const override { return ViewOf(layer_slot, Role::kKey); }
  KvRef Values(int64_t layer_slot) const override { return ViewOf(layer_slot, Role::kValue); }

  std::span<std::byte> Blocks() const override {
    KVERN_CHECK(packed_);
    if (runs_.empty()) return {};
    return {arena_->Page(runs_.front().first), static_cast<size_t>(packed_bytes_)};
  }
  void SetMeanKey(std::vector<Float16> mean_key) override { info_.mean_key = std::move(mean_key); }

  absl::Status CopyIn(std::span<const std::byte> host, std::byte* at) const override {
    KVERN_CHECK(Holds(at, std::ssize(host)));
    return arena_->Memory().CopyIn(host, at);
  }
  absl::Status CopyOut(const std::byte* at, std::span<std::byte> host) const override {
    KVERN_CHECK(Holds(at, std::ssize(host)));
    return arena_->Memory().CopyOut(at, host);
  }

  int64_t StoredBytes() const override {
    int64_t pages = 0;
    for (const PageRun& run : runs_) pages += run.count;
    return pages * arena_->PageBytes();
  }

  const std::vector<PageRun>& Runs() const { return runs_; }

 private:
  bool Holds(const std::byte* at, int64_t bytes) const {
    const int64_t offset = at - arena_->Page(0);
    const auto after = std::upper_bound(
        runs_.begin(), runs_.end(), offset,
        [&](int64_t value, const auto& run) { return value < run.first * arena_->PageBytes(); });
    if (bytes == 0) return true;
    if (after == runs_.begin()) return false;
    const PageRun& run = *std::prev(after);
    return bytes <= (run.first + run.count) * arena_->PageBytes() - offset;
  }
  KvRef ViewOf(int64_t layer_slot, Role role) const {
    KVERN_CHECK(!packed_);
    KVERN_CHECK(layer_slot >= 0 && layer_slot < static_cast<int64_t>(info_.layer_indices.size()));
    const int64_t blocks = (info_.num_tokens + kStoreBlockTokens - 1) / kStoreBlockTokens;
    const int64_t row_bytes = info_.head_dim * SizeOf(info_.dtype);
    KvRef ref;
    ref.dtype = info_.dtype;
    ref.kv_heads = info_.kv_heads;
    ref.head_dim = info_.head_dim;
    ref.tokens = info_.num_tokens;
    ref.block_tokens = kStoreBlockTokens;
    ref.base = arena_->Page(0);
    ref.strides = {arena_->PageBytes(), kStoreBlockTokens * row_bytes, row_bytes,
                   SizeOf(info_.dtype)};
    ref.block_ids = block_ids_.data() + (layer_slot * 2 + static_cast<int64_t>(role)) * blocks;
    if (!info_.lengths.empty()) ref.lengths = info_.lengths.data() + layer_slot * info_.kv_heads;
    return ref;
  }

  StoredInfo info_;
  const std::shared_ptr<PageArena> arena_;  // outlives the store for late holders
  const std::vector<PageRun> runs_;         // ascending
  std::vector<uint32_t> block_ids_;         // [layers, 2 roles, blocks], in pages
  bool packed_ = false;
  int64_t packed_bytes_ = 0;
};

class PagedStore final : public Store {
 public:
  PagedStore(std::shared_ptr<PageArena> arena, int64_t max_sequences)
      : arena_(std::move(arena)), max_sequences_(max_sequences) {}

  absl::StatusOr<std::shared_ptr<StoredSequence>> AllocateDense(StoredInfo info) override;
  absl::StatusOr<std::shared_ptr<StoredSequence>> AllocatePacked(StoredInfo info,
                                                                 int64_t block_bytes) override;
  absl::Status Publish(std::shared_ptr<StoredSequence> sequence, Commit commit,
                       uint64_t replace_epoch) override;
  absl::StatusOr<std::shared_ptr<StoredSequence>> Find(const std::string& id) override;
  absl::StatusOr<std::shared_ptr<StoredSequence>> Peek(const std::string& id) const override;
  void Touch(const std::string& id) override;
  std::vector<std::shared_ptr<StoredSequence>> List() const override;
  bool Delete(const std::string& id) override;
  bool Release(const std::string& id) override;
  bool IsReleased(const std::string& id) const override;

  bool OnDevice() const override { return arena_->Memory().OnDevice(); }
  int64_t CapacityBytes() const override { return arena_->CapacityBytes(); }
  int64_t UsedBytes() const override { return arena_->UsedBytes(); }
  int64_t Evictions() const override {
    const absl::MutexLock lock(&mutex_);
    return evictions_;
  }

 private:
  struct Entry {
    std::shared_ptr<StoredSequence> sequence;
    bool released = false;
    int64_t used_at = 0;  // of a counter, not a clock
  };
  using Entries = absl::btree_map<std::string, Entry>;

  // Released entries that nobody else holds, least recently used first: their pages come back at
  // once.
  std::vector<Entries::iterator> Evictable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Evict(std::span<const Entries::iterator> victims) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::vector<PageRun>> FindRoom(const PageDemand& demand)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::vector<PageRun>> MakeRoom(const PageDemand& demand)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Replace(Entries::iterator entry, std::shared_ptr<StoredSequence>* sequence,
                       uint64_t replace_epoch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<PageArena> arena_;
  const int64_t max_sequences_;
  mutable absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  int64_t clock_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t evictions_ ABSL_GUARDED_BY(mutex_) = 0;
};

std::vector<PagedStore::Entries::iterator> PagedStore::Evictable() {
  std::vector<Entries::iterator> found;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.released && entry->second.sequence.use_count() == 1) found.push_back(entry);
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return a->second.used_at < b->second.used_at; });
  return found;
}

void PagedStore::Evict(std::span<const Entries::iterator> victims) {
  // By id: erasing from a B-tree moves its other iterators.
  std::vector<std::string> ids;
  for (const auto& victim : victims) ids.push_back(victim->first);
  for (const std::string& id : ids) entries_.erase(id);
  evictions_ += static_cast<int64_t>(ids.size());
}

absl::StatusOr<std::vector<PageRun>> PagedStore::FindRoom(const PageDemand& demand) {
  if (demand.pieces == 0) return std::vector<PageRun>();
  const absl::MutexLock lock(&mutex_);
  std::vector<PageRun> runs = arena_->Take(demand.piece_pages, demand.pieces);
  if (!runs.empty()) return runs;

  // Tried on a copy first, so that a request too large evicts nobody.
  PageMap trial = arena_->Snapshot();
  const std::vector<Entries::iterator> evictable = Evictable();
  size_t victims = 0;
  while (victims < evictable.size() && !trial.Fits(demand.piece_pages, demand.pieces)) {
    const auto& sequence = static_cast<const PagedSequence&>(*evictable[victims]->second.sequence);
    for (const PageRun& run : sequence.Runs()) trial.Free(run);
    ++victims;
  }
  if (trial.Fits(demand.piece_pages, demand.pieces)) {
    Evict(std::span(evictable).first(victims));
    // Others only give pages back meanwhile (all taking holds our lock), so it still fits.
    runs = arena_->Take(demand.piece_pages, demand.pieces);
    KVERN_CHECK(!runs.empty());
    return runs;
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "store: ", demand.pieces, " pieces of ", demand.piece_pages * arena_->PageBytes(),
      " bytes do not fit beside what is in use; capacity is ", arena_->CapacityBytes(), " bytes"));
}

absl::StatusOr<std::vector<PageRun>> PagedStore::MakeRoom(const PageDemand& demand) {
  KVERN_ASSIGN_OR_RETURN(std::vector<PageRun> runs, FindRoom(demand));
  const absl::Status cleared = arena_->Clear(runs);
  if (cleared.ok()) return runs;
  arena_->Free(runs);
  return cleared;
}

absl::StatusOr<std::shared_ptr<StoredSequence>> PagedStore::AllocateDense(StoredInfo info) {
  KVERN_RETURN_IF_ERROR(ValidateInfo(info));
  const Wide piece_bytes =
      Wide{info.kv_heads} * kStoreBlockTokens * info.head_dim * SizeOf(info.dtype);
  const Wide piece_pages = (piece_bytes + arena_->PageBytes() - 1) / arena_->PageBytes();
  const Wide blocks = (Wide{info.num_tokens} + kStoreBlockTokens - 1) / kStoreBlockTokens;
  const Wide pieces = blocks * 2 * static_cast<int64_t>(info.layer_indices.size());
  const Wide capacity_pages = arena_->CapacityBytes() / arena_->PageBytes();
  if (pieces > 0 && (piece_pages > capacity_pages || pieces > capacity_pages / piece_pages)) {
    return absl::ResourceExhaustedError(absl::StrCat("store: ", info.num_tokens,
                                                     " tokens are more than the capacity of ",
                                                     arena_->CapacityBytes(), " bytes"));
  }
  const PageDemand demand = {static_cast<int64_t>(piece_pages), static_cast<int64_t>(pieces)};
  KVERN_ASSIGN_OR_RETURN(std::vector<PageRun> runs, MakeRoom(demand));
  auto sequence = std::make_shared<PagedSequence>(std::move(info), arena_, std::move(runs));
  sequence->NumberBlocks(demand.piece_pages);
  return std::shared_ptr<StoredSequence>(std::move(sequence));
}

absl::StatusOr<std::shared_ptr<StoredSequence>> PagedStore::AllocatePacked(StoredInfo info,
                                                                           int64_t block_bytes) {
  KVERN_RETURN_IF_ERROR(ValidateInfo(info));
  if (block_bytes < 0 || block_bytes > arena_->CapacityBytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("store: got ", block_bytes,
                                                     " bytes of blocks, want 0 to the capacity of ",
                                                     arena_->CapacityBytes()));
  }
  const PageDemand demand = {(block_bytes + arena_->PageBytes() - 1) / arena_->PageBytes(),
                             block_bytes > 0 ? 1 : 0};
  KVERN_ASSIGN_OR_RETURN(std::vector<PageRun> runs, MakeRoom(demand));
  auto sequence = std::make_shared<PagedSequence>(std::move(info), arena_, std::move(runs));
  sequence->SetPacked(block_bytes);
  return std::shared_ptr<StoredSequence>(std::move(sequence));
}

absl::Status PagedStore::Replace(Entries::iterator entry, std::shared_ptr<StoredSequence>* sequence,
                                 uint64_t replace_epoch) {
  const uint64_t epoch = entry->second.sequence->Info().epoch;
  if (epoch != replace_epoch) {
    return WithReason(absl::AbortedError(absl::StrCat("sequence: ", entry->first, " is at epoch ",
                                                      epoch, ", want ", replace_epoch)),
                      "EPOCH_MISMATCH");
  }
  entry->second.sequence.swap(*sequence);  // the old one ends with the caller's pointer
  entry->second.released = false;
  entry->second.used_at = ++clock_;
  return absl::OkStatus();
}

absl::Status PagedStore::Publish(std::shared_ptr<StoredSequence> sequence, Commit commit,
                                 uint64_t replace_epoch) {
  const std::string id = sequence->Info().id;
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(id);
  if (commit == Commit::kReplace) {
    if (entry == entries_.end()) return Unknown(id);
    return Replace(entry, &sequence, replace_epoch);
  }
  if (entry != entries_.end()) {
    return absl::AlreadyExistsError(
        absl::StrCat("sequence: got ", id, ", which is stored; want a new id"));
  }
  if (static_cast<int64_t>(entries_.size()) >= max_sequences_) {
    const std::vector<Entries::iterator> evictable = Evictable();
    if (evictable.empty()) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "store: holds ", entries_.size(), " sequences, want at most ", max_sequences_));
    }
    Evict(std::span(evictable).first(1));
  }
  entries_.emplace(id, Entry{std::move(sequence), false, ++clock_});
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<StoredSequence>> PagedStore::Find(const std::string& id) {
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(id);
  if (entry == entries_.end()) return Unknown(id);
  entry->second.released = false;
  entry->second.used_at = ++clock_;
  return entry->second.sequence;
}

absl::StatusOr<std::shared_ptr<StoredSequence>> PagedStore::Peek(const std::string& id) const {
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(id);
  if (entry == entries_.end()) return Unknown(id);
  return entry->second.sequence;
}

void PagedStore::Touch(const std::string& id) { Find(id).IgnoreError(); }

std::vector<std::shared_ptr<StoredSequence>> PagedStore::List() const {
  const absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<StoredSequence>> sequences;
  sequences.reserve(entries_.size());
  for (const auto& [id, entry] : entries_) sequences.push_back(entry.sequence);
  return sequences;
}

bool PagedStore::Delete(const std::string& id) {
  std::shared_ptr<StoredSequence> ended;  // frees its pages outside the lock
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(id);
  if (entry == entries_.end()) return false;
  ended = std::move(entry->second.sequence);
  entries_.erase(entry);
  return true;
}

bool PagedStore::Release(const std::string& id) {
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(id);
  if (entry == entries_.end()) return false;
  entry->second.released = true;
  return true;
}

bool PagedStore::IsReleased(const std::string& id) const {
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(id);
  return entry != entries_.end() && entry->second.released;
}

}  // namespace

std::unique_ptr<Store> Store::Create(std::unique_ptr<StoreMemory> memory, int64_t max_sequences) {
  return std::make_unique<PagedStore>(std::make_shared<PageArena>(std::move(memory)),
                                      max_sequences);
}

}  // namespace kvern::memory
