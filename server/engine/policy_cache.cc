// Compared by value: a hash would have to be made of every request, the first of few is found at
// once.
#include "server/engine/policy_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

std::shared_ptr<const KnownPolicy> Describe(const pipeline::Policy& asked,
                                            const pipeline::Availability& available,
                                            pipeline::ResolvedPolicy resolved) {
  const auto known = std::make_shared<KnownPolicy>();
  known->asked = asked;
  known->available = available;
  known->policy = std::move(resolved);
  const pipeline::ResolvedPolicy& policy = known->policy;
  known->budgeter = pipeline::ToText(policy.budgeter_spec);
  known->scorer = policy.scorers.empty() ? "" : policy.ScorerText();
  known->selector = pipeline::ToText(policy.selector_spec);
  known->k_codec = pipeline::ToText(policy.codecs.k);
  known->v_codec = pipeline::ToText(policy.codecs.v);
  known->stages = absl::StrCat(known->scorer, "|", known->selector, "|", known->k_codec, "|",
                               known->v_codec, "|", static_cast<int>(policy.positions), "|",
                               static_cast<int>(policy.placement));
  return known;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const KnownPolicy>> PolicyCache::Resolve(
    const pipeline::Policy& policy, const pipeline::Availability& available) {
  const absl::MutexLock lock(&mutex_);
  for (auto at = known_.begin(); at != known_.end(); ++at) {
    if ((*at)->available != available || (*at)->asked != policy) continue;
    std::rotate(known_.begin(), at, at + 1);
    return known_.front();
  }
  KVERN_ASSIGN_OR_RETURN(pipeline::ResolvedPolicy resolved, pipeline::Resolve(policy, available));
  if (known_.size() == max_policies_) known_.pop_back();
  known_.insert(known_.begin(), Describe(policy, available, std::move(resolved)));
  return known_.front();
}

}  // namespace kvern::engine
