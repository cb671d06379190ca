// Policies come again and again: what was resolved once is kept.
#ifndef KVERN_SERVER_ENGINE_POLICY_CACHE_H_
#define KVERN_SERVER_ENGINE_POLICY_CACHE_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/pipeline/resolve.h"

namespace kvern::engine {

// A resolved policy and its stages in the words of the answer.
struct KnownPolicy {
  pipeline::Policy asked;
  pipeline::Availability available;
  pipeline::ResolvedPolicy policy;
  std::string budgeter, scorer, selector, k_codec, v_codec;
  // Equal for policies whose sequences one op may serve.
  std::string stages;
};

// Thread-safe. Holds the policies used last.
class PolicyCache {
 public:
  explicit PolicyCache(size_t max_policies) : max_policies_(max_policies) {}

  // Errors: of pipeline::Resolve, which are not kept.
  absl::StatusOr<std::shared_ptr<const KnownPolicy>> Resolve(
      const pipeline::Policy& policy, const pipeline::Availability& available);

 private:
  const size_t max_policies_;
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<const KnownPolicy>> known_ ABSL_GUARDED_BY(mutex_);  // newest first
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_POLICY_CACHE_H_
