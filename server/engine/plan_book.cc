// A full book refuses the newcomer: dropping another caller's plan would break its promise.
#include "server/engine/plan_book.h"

#include <sys/random.h>

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

// Who knows an id may apply the plan, so it cannot be guessed.
std::string NewId() {
  char bits[16];
  KVERN_CHECK(getrandom(bits, sizeof(bits), 0) == static_cast<ssize_t>(sizeof(bits)));
  return absl::BytesToHexString(absl::string_view(bits, sizeof(bits)));
}

absl::Status Gone(const char* what, const char* reason) {
  return WithReason(absl::FailedPreconditionError(absl::StrCat("plan: got one that ", what,
                                                               ", want another PlanCompression")),
                    reason);
}

absl::Status Unknown() {
  return WithReason(absl::NotFoundError("plan: got a name that is not known, want one that "
                                        "PlanCompression answered"),
                    "PLAN_UNKNOWN");
}

absl::Status Full(int64_t got, int64_t want, const char* unit, const char* flag) {
  return WithReason(absl::ResourceExhaustedError(absl::StrCat(
                        "plans: got ", got, " ", unit, ", want at most ", want, " (", flag, ")")),
                    "QUOTA");
}

}  // namespace

absl::StatusOr<std::string> PlanBook::Keep(HeldPlan plan, absl::Time now) {
  const int64_t bytes = plan.Bytes();
  absl::MutexLock lock(&mutex_);
  Expire(now);
  if (levels_.plans >= limits_.plans) {
    return Full(levels_.plans + 1, limits_.plans, "waiting", "--plans");
  }
  if (bytes > limits_.plan_bytes - levels_.bytes) {
    return Full(bytes, limits_.plan_bytes - levels_.bytes, "bytes more", "--plan-bytes");
  }
  soonest_ = std::min(soonest_, plan.expires);
  std::string id = NewId();
  entries_[id] = {std::make_shared<const HeldPlan>(std::move(plan)), bytes, /*claimed=*/false};
  ++levels_.plans;
  ++levels_.made;
  levels_.bytes += bytes;
  return id;
}

absl::Status PlanBook::WhyGone(const std::string& id) const {
  const auto end = ends_.find(id);
  if (end == ends_.end()) return Unknown();
  switch (end->second) {
    case End::kApplied:
      return Gone("was applied", "PLAN_APPLIED");
    case End::kExpired:
      return Gone("waited longer than its time", "PLAN_EXPIRED");
    case End::kReleased:
      break;
  }
  return Gone("went with its pool or a released sequence", "PLAN_RELEASED");
}

absl::StatusOr<std::shared_ptr<const HeldPlan>> PlanBook::Claim(const std::string& id,
                                                                const std::string& peer,
                                                                absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Expire(now);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return WhyGone(id);
  if (found->second.plan->job->peer != peer) return Unknown();
  if (found->second.claimed) {
    return WithReason(absl::FailedPreconditionError(
                          "plan: got one that another call applies, want to wait for that call"),
                      "PLAN_BUSY");
  }
  found->second.claimed = true;
  return found->second.plan;
}

void PlanBook::Settle(const std::string& id, Ran ran) {
  absl::MutexLock lock(&mutex_);
  const auto found = entries_.find(id);
  KVERN_CHECK(found != entries_.end() && found->second.claimed);
  found->second.claimed = false;
  if (ran == Ran::kNo) return;
  levels_.bytes -= found->second.bytes;
  --levels_.plans;
  entries_.erase(found);
  Note(id, End::kApplied);
}

void PlanBook::Release(const absl::flat_hash_set<std::string>& sequence_ids) {
  absl::MutexLock lock(&mutex_);
  DropIf(End::kReleased, [&](const HeldPlan& plan) {
    for (const SequenceJob& sequence : plan.job->sequences) {
      if (sequence_ids.contains(sequence.sequence_id)) return true;
    }
    return false;
  });
}

void PlanBook::Sweep(absl::Time now) {
  absl::MutexLock lock(&mutex_);
  Expire(now);
  DropIf(End::kReleased, [](const HeldPlan& plan) {
    return std::any_of(plan.chosen.begin(), plan.chosen.end(), [](const auto& chosen) {
      return chosen != nullptr && chosen->PoolIsGone();
    });
  });
}

void PlanBook::Expire(absl::Time now) {
  if (now < soonest_) return;
  DropIf(End::kExpired, [&](const HeldPlan& plan) { return plan.expires <= now; });
  soonest_ = absl::InfiniteFuture();
  for (const auto& [id, entry] : entries_) soonest_ = std::min(soonest_, entry.plan->expires);
}

void PlanBook::DropIf(End end, const std::function<bool(const HeldPlan&)>& doomed) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto here = entry++;
    if (here->second.claimed || !doomed(*here->second.plan)) continue;
    levels_.bytes -= here->second.bytes;
    --levels_.plans;
    const std::string id = here->first;
    entries_.erase(here);
    Note(id, end);
  }
}

void PlanBook::Note(const std::string& id, End end) {
  int64_t& count = end == End::kApplied   ? levels_.applied
                   : end == End::kExpired ? levels_.expired
                                          : levels_.released;
  ++count;
  ends_[id] = end;
  ended_.push_back(id);
  while (static_cast<int64_t>(ended_.size()) > limits_.plans) {
    ends_.erase(ended_.front());
    ended_.pop_front();
  }
}

PlanLevels PlanBook::Now(absl::Time now) {
  Sweep(now);
  absl::MutexLock lock(&mutex_);
  return levels_;
}

absl::StatusOr<Planned> KeepPlan(Validated validated, const ModelRegistry& models, PlanBook* book) {
  const absl::Time now = absl::Now();
  HeldPlan plan;
  plan.job = validated.job;
  KVERN_ASSIGN_OR_RETURN(plan.model, models.Find(plan.job->model));
  plan.expires = now + validated.patience;
  bool any = false;
  for (SequenceResult& sequence : validated.result.results) {
    any = any || sequence.chosen != nullptr;
    plan.chosen.push_back(std::move(sequence.chosen));
  }
  Planned planned;
  planned.result = std::move(validated.result);
  if (!any) return planned;
  book->Sweep(now);
  KVERN_ASSIGN_OR_RETURN(planned.plan, book->Keep(std::move(plan), now));
  return planned;
}

absl::StatusOr<CompressJob> ClaimJob(const ApplyJob& apply, const ModelRegistry& models,
                                     PlanBook* book) {
  const absl::Time now = absl::Now();
  book->Sweep(now);
  KVERN_ASSIGN_OR_RETURN(const auto plan, book->Claim(apply.plan, apply.peer, now));
  absl::StatusOr<CompressJob> job = JobOf(*plan, apply);
  const auto model = models.Find(plan->job->model);
  if (job.ok() && (!model.ok() || *model != plan->model)) {
    job = Stale("got another model of the name, want the planned one");
  }
  if (!job.ok()) book->Settle(apply.plan, PlanBook::Ran::kNo);
  return job;
}

}  // namespace kvern::engine
