// Which rows must keep the same tokens, and what they must agree on for that.
#ifndef KVERN_SERVER_PIPELINE_SELECTORS_SHARING_H_
#define KVERN_SERVER_PIPELINE_SELECTORS_SHARING_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "server/pipeline/selector.h"

namespace kvern::pipeline {

enum class Share : uint8_t { kNone, kHeads, kLayers, kAll };

struct Sharing {
  Share share = Share::kNone;
  GroupReduce reduce = GroupReduce::kMean;
};

// Reads the parameters `share` and `reduce`.
Sharing SharingFrom(const StageParams& params);

// Lowest class of sets shared like this when counts are equal everywhere.
ShapeClass ClassOf(Share share);

// Rows (layer * kv_heads + head) that share one set; empty for kNone.
std::vector<std::vector<int64_t>> GroupsOf(Share share, int64_t layers, int64_t kv_heads);

// Replaces the scores of rows that share a set by one row. Errors: FailedPrecondition/SHAPE_CLASS
// when rows of a group differ in count, candidates or forced tokens.
absl::Status ShareScores(Backend& backend, const Sharing& sharing,
                         std::span<const SelectInput> cohort);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SELECTORS_SHARING_H_
