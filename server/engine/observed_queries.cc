// Sums grow all the time, the calibration made of them only now and then.
#include "server/engine/observed_queries.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"

namespace kvern::engine {
namespace {

// Moments of 256 queries at head_dim 64 scored as well as those of all of a prompt
// (quality-qwen.md 3).
constexpr int64_t kConfidentPerDim = 4;

int64_t NextSerial() {
  static std::atomic<int64_t> serial{0};
  return ++serial;
}

absl::Status TooFewTokens(int64_t got, int64_t want) {
  return WithReason(
      absl::FailedPreconditionError(absl::StrCat("calibrations/observed: got ", got,
                                                 " query positions in a layer, want at least ",
                                                 want, " in each (ObserveQueries)")),
      "OBSERVED_TOO_FEW");
}

}  // namespace

ObservedQueries::ObservedQueries(const pipeline::ModelSpec& model)
    : confident_tokens_(kConfidentPerDim * model.head_dim),
      size_bytes_(BytesFor(model)),
      serial_(NextSerial()),
      statistics_(model) {}

int64_t ObservedQueries::BytesFor(const pipeline::ModelSpec& model) {
  return pipeline::QueryStatistics::SumBytes(model) +
         pipeline::QueryStatistics::ArtifactBytes(model);
}

void ObservedQueries::Add(const pipeline::QueryBatch& batch) {
  absl::MutexLock lock(&mutex_);
  statistics_.Add(batch);
}

ObservedQueries::Facts ObservedQueries::Describe(Detail detail) const {
  absl::MutexLock lock(&mutex_);
  Facts facts;
  facts.layer_tokens = statistics_.LayerTokens();
  if (detail == Detail::kMeanErrors) facts.mean_errors = statistics_.MeanErrors();
  facts.confident_tokens = confident_tokens_;
  facts.size_bytes = size_bytes_;
  facts.confident = statistics_.LeastTokens() >= confident_tokens_;
  return facts;
}

ObservedQueries::Snapshot ObservedQueries::Take() const {
  Snapshot snapshot;
  snapshot.centres = std::make_shared<const pipeline::QueryCentres>(statistics_.Centres());
  snapshot.moments = std::make_shared<const pipeline::QueryMoments>(statistics_.Moments());
  snapshot.layer_tokens = statistics_.LayerTokens();
  return snapshot;
}

int64_t ObservedQueries::Snapshot::LeastTokens(std::span<const int32_t> layers) const {
  if (layers.empty()) return *std::min_element(layer_tokens.begin(), layer_tokens.end());
  int64_t least = layer_tokens[layers[0]];
  for (const int32_t layer : layers) least = std::min(least, layer_tokens[layer]);
  return least;
}

std::shared_ptr<const ObservedQueries::Snapshot> ObservedQueries::Current(
    std::span<const int32_t> layers) {
  absl::MutexLock lock(&mutex_);
  const int64_t tokens = statistics_.LeastTokens(layers);
  if (tokens < confident_tokens_) return nullptr;
  const int64_t known = current_ == nullptr ? 0 : current_->LeastTokens(layers);
  if (known < confident_tokens_ || tokens >= known + known / 4) {
    Snapshot fresh = Take();
    fresh.cache_key = absl::StrCat("observed:", serial_, ":", ++version_, ";");
    current_ = std::make_shared<const Snapshot>(std::move(fresh));
  }
  return current_;
}

absl::StatusOr<ObservedQueries::Snapshot> ObservedQueries::Export() const {
  absl::MutexLock lock(&mutex_);
  if (statistics_.LeastTokens() == 0) return TooFewTokens(0, 1);
  return Take();
}

absl::Status ObservedQueries::TooFew(std::span<const int32_t> layers) const {
  absl::MutexLock lock(&mutex_);
  return TooFewTokens(statistics_.LeastTokens(layers), confident_tokens_);
}

}  // namespace kvern::engine
