// What live queries say of one model, and the calibration they amount to.
#ifndef KVERN_SERVER_ENGINE_OBSERVED_QUERIES_H_
#define KVERN_SERVER_ENGINE_OBSERVED_QUERIES_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/pipeline/query_statistics.h"

namespace kvern::engine {

// Name of observed queries among calibrations.
inline constexpr char kObservedCalibration[] = "observed";

// Thread-safe.
class ObservedQueries {
 public:
  explicit ObservedQueries(const pipeline::ModelSpec& model);

  // Of sums and of the calibration that is made of them.
  static int64_t BytesFor(const pipeline::ModelSpec& model);

  // Batches, and the layers below, are of the model that it was made for.
  void Add(const pipeline::QueryBatch& batch);

  struct Facts {
    std::vector<int64_t> layer_tokens;  // [num_layers]
    std::vector<float> mean_errors;     // [num_layers, q_heads], or empty
    int64_t confident_tokens = 0;
    int64_t size_bytes = 0;
    bool confident = false;
  };
  enum class Detail : uint8_t { kBrief, kMeanErrors };
  Facts Describe(Detail detail) const;

  // A calibration as of some moment; immutable.
  struct Snapshot {
    std::shared_ptr<const pipeline::QueryCentres> centres;
    std::shared_ptr<const pipeline::QueryMoments> moments;
    std::vector<int64_t> layer_tokens;  // [num_layers]
    std::string cache_key;              // of no other one in this process
    // Over these layers; none: over all.
    int64_t LeastTokens(std::span<const int32_t> layers = {}) const;
  };
  // For these layers of the model; none: for all. Null while one of them has fewer tokens than it
  // takes to be confident. The same one until each of them has a quarter more, since what is
  // derived from it (eigenvectors) is dear.
  std::shared_ptr<const Snapshot> Current(std::span<const int32_t> layers = {});
  // As of now. Errors: FailedPrecondition/OBSERVED_TOO_FEW while a layer has none.
  absl::StatusOr<Snapshot> Export() const;
  // FailedPrecondition/OBSERVED_TOO_FEW, what there is and what is wanted.
  absl::Status TooFew(std::span<const int32_t> layers) const;

 private:
  Snapshot Take() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int64_t confident_tokens_;
  const int64_t size_bytes_;
  const int64_t serial_;  // tells the statistics of one model name apart over its lives
  mutable absl::Mutex mutex_;
  pipeline::QueryStatistics statistics_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Snapshot> current_ ABSL_GUARDED_BY(mutex_);
  int64_t version_ ABSL_GUARDED_BY(mutex_) = 0;  // of current_
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_OBSERVED_QUERIES_H_
