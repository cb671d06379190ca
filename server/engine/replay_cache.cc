// A request_id is either running, with those who wait for it, or answered.
#include "server/engine/replay_cache.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

template <class T>
int64_t BytesOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.capacity() * sizeof(T));
}

void GiveUpSpaceOf(SequenceResult* result) {
  GiveUpSpace(&result->block_ids);
  GiveUpSpace(&result->freed_block_ids);
  GiveUpSpace(&result->lengths);
  GiveUpSpace(&result->kept);
  GiveUpSpace(&result->positions);
  GiveUpSpace(&result->kept_counts);
}

int64_t BytesOf(const CompressResult& answer) {
  int64_t bytes = 0;
  for (const SequenceResult& result : answer.results) {
    bytes += static_cast<int64_t>(sizeof(SequenceResult) + result.sequence_id.size());
    bytes += BytesOf(result.block_ids) + BytesOf(result.freed_block_ids) + BytesOf(result.lengths);
    bytes += BytesOf(result.kept) + BytesOf(result.positions) + BytesOf(result.kept_counts);
    bytes += BytesOf(result.scores) + BytesOf(result.k) + BytesOf(result.v);
    if (result.packed) bytes += result.packed->Bytes();
    for (const std::string& warning : result.warnings) {
      bytes += static_cast<int64_t>(sizeof(warning) + warning.size());
    }
  }
  return bytes;
}

}  // namespace

bool ReplayCache::Takes(const CompressJob& job) {
  if (job.request_id.empty()) return false;
  for (const SequenceJob& sequence : job.sequences) {
    if (std::holds_alternative<InlineSource>(sequence.source)) return false;
  }
  return true;
}

absl::StatusOr<ReplayCache::Start> ReplayCache::Begin(const CompressJob& job, absl::Time now,
                                                      Waiter waiter) {
  absl::MutexLock lock(&mutex_);
  Expire(now);
  const Key key(job.peer, job.request_id);
  const auto found = entries_.find(key);
  if (found == entries_.end()) {
    entries_[key].request_hash = job.request_hash;
    return Start{};
  }
  Entry& entry = found->second;
  if (entry.request_hash != job.request_hash) {
    return WithField(
        absl::InvalidArgumentError(absl::StrCat("request_id: got one that another request used in "
                                                "the last ",
                                                limits_.replay_seconds, " s, want a new one")),
        "request_id");
  }
  if (entry.answer != nullptr) return Start{Begun::kAnswered, entry.answer};
  if (waiting_ >= limits_.queued_calls) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat("queue: got ", waiting_,
                                                  " calls that wait for one of their id, want at "
                                                  "most ",
                                                  limits_.queued_calls)),
        "QUEUE_FULL");
  }
  ++waiting_;
  entry.waiters.push_back(std::move(waiter));
  return Start{Begun::kAttached, nullptr};
}

std::vector<ReplayCache::Waiter> ReplayCache::Finish(const CompressJob& job, absl::Time now,
                                                     const Answer& answer) {
  absl::MutexLock lock(&mutex_);
  const Key key(job.peer, job.request_id);
  const auto found = entries_.find(key);
  KVERN_CHECK(found != entries_.end() && found->second.answer == nullptr);
  std::vector<Waiter> waiters = std::move(found->second.waiters);
  waiting_ -= static_cast<int64_t>(waiters.size());
  if (answer.ok()) {
    Keep(key, now, *answer);
  } else {
    entries_.erase(found);
  }
  return waiters;
}

void ReplayCache::Forget(const absl::flat_hash_set<std::string>& sequence_ids) {
  absl::MutexLock lock(&mutex_);
  std::vector<Key> doomed;
  for (const auto& [key, entry] : entries_) {
    if (entry.answer == nullptr) continue;
    for (const SequenceResult& result : entry.answer->results) {
      if (!sequence_ids.contains(result.sequence_id)) continue;
      doomed.push_back(key);
      break;
    }
  }
  for (const Key& key : doomed) Erase(key);
}

void ReplayCache::Keep(const Key& key, absl::Time now, const CompressResult& answer) {
  auto stored = std::make_shared<CompressResult>(answer);
  GiveUpSpace(&stored->results);
  for (SequenceResult& result : stored->results) GiveUpSpaceOf(&result);
  const int64_t bytes = BytesOf(*stored);
  if (bytes > limits_.replay_bytes) {
    entries_.erase(key);
    ++evictions_;
    return;
  }
  stored->replayed = true;
  ages_.push_back(key);
  Entry& entry = entries_[key];
  entry.answer = std::move(stored);
  entry.waiters.clear();
  entry.stored_at = now;
  entry.bytes = bytes;
  entry.age = std::prev(ages_.end());
  bytes_ += bytes;
  while (static_cast<int64_t>(ages_.size()) > limits_.replay_answers ||
         bytes_ > limits_.replay_bytes) {
    Erase(Key(ages_.front()));
    ++evictions_;
  }
}

void ReplayCache::Erase(const Key& key) {
  const auto found = entries_.find(key);
  bytes_ -= found->second.bytes;
  ages_.erase(found->second.age);
  entries_.erase(found);
}

void ReplayCache::Expire(absl::Time now) {
  const absl::Duration age = absl::Seconds(limits_.replay_seconds);
  while (!ages_.empty() && entries_.at(ages_.front()).stored_at + age < now) {
    Erase(Key(ages_.front()));
  }
}

}  // namespace kvern::engine
