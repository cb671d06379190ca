// Plans that wait for their second call: bounded in number, bytes and time.
#ifndef KVERN_SERVER_ENGINE_PLAN_BOOK_H_
#define KVERN_SERVER_ENGINE_PLAN_BOOK_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/engine/chosen_plan.h"
#include "server/engine/engine_events.h"
#include "server/memory/limits.h"

namespace kvern::engine {

// Thread-safe. Time is passed in; a plan whose time is up goes at the next call.
class PlanBook {
 public:
  explicit PlanBook(const Limits& limits) : limits_(limits) {}

  // The new plan's id: 128 random bits in hex. Errors: ResourceExhausted/QUOTA.
  absl::StatusOr<std::string> Keep(HeldPlan plan, absl::Time now);
  // For one call of the peer that made it; Settle follows. Errors: NotFound/PLAN_UNKNOWN;
  // FailedPrecondition/PLAN_EXPIRED, PLAN_APPLIED, PLAN_RELEASED or PLAN_BUSY.
  absl::StatusOr<std::shared_ptr<const HeldPlan>> Claim(const std::string& id,
                                                        const std::string& peer, absl::Time now);
  // The call that claimed it ran (the plan is used up) or did not (another may).
  enum class Ran : uint8_t { kNo, kYes };
  void Settle(const std::string& id, Ran ran);
  // Drops plans that hold one of these sequences.
  void Release(const absl::flat_hash_set<std::string>& sequence_ids);
  // Drops plans whose time is up, and those of pools that are gone.
  void Sweep(absl::Time now);

  PlanLevels Now(absl::Time now);

 private:
  enum class End : uint8_t { kApplied, kExpired, kReleased };
  struct Entry {
    std::shared_ptr<const HeldPlan> plan;
    int64_t bytes = 0;
    bool claimed = false;
  };
  using Entries = absl::flat_hash_map<std::string, Entry>;
  absl::Status WhyGone(const std::string& id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Expire(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `doomed` says which; those that are being applied stay.
  void DropIf(End end, const std::function<bool(const HeldPlan&)>& doomed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Note(const std::string& id, End end) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  mutable absl::Mutex mutex_;
  Entries entries_ ABSL_GUARDED_BY(mutex_);
  absl::Time soonest_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();  // end of any
  PlanLevels levels_ ABSL_GUARDED_BY(mutex_);
  // How the last ones ended, as many as there may be plans.
  absl::flat_hash_map<std::string, End> ends_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::string> ended_ ABSL_GUARDED_BY(mutex_);  // oldest first
};

// A job that was validated, and what came of it.
struct Validated {
  std::shared_ptr<const CompressJob> job;
  absl::Duration patience;
  CompressResult result;
};
// Keeps what was chosen, where anything was. Errors: of Keep.
absl::StatusOr<Planned> KeepPlan(Validated validated, const ModelRegistry& models, PlanBook* book);
// Claims the plan and makes its job; not claimed on an error. Errors: of Claim and JobOf;
// FailedPrecondition/PLAN_STALE where the model is another one by now.
absl::StatusOr<CompressJob> ClaimJob(const ApplyJob& apply, const ModelRegistry& models,
                                     PlanBook* book);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_PLAN_BOOK_H_
