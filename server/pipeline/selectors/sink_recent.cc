// StreamingLLM as an interval, not as tied scores: sinks are forced, so the rest is the last
// tokens.
#include <algorithm>

#include "server/pipeline/selector.h"

namespace kvern::pipeline {
namespace {

// Forced tokens first, oldest first (with fewer places than sinks: the first sinks), then the most
// recent candidates.
std::vector<int32_t> SelectRow(MaskView candidates, MaskView forced, int64_t row, int64_t count) {
  const int64_t layer = row / forced.shape[1], head = row % forced.shape[1];
  const int64_t tokens = forced.shape[2];
  std::vector<int32_t> picks;
  for (int64_t token = 0; token < tokens; ++token) {
    if (static_cast<int64_t>(picks.size()) == count) break;
    if (forced(layer, head, token) != 0) picks.push_back(static_cast<int32_t>(token));
  }
  for (int64_t token = tokens - 1; token >= 0; --token) {
    if (static_cast<int64_t>(picks.size()) == count) break;
    if (candidates(layer, head, token) != 0) picks.push_back(static_cast<int32_t>(token));
  }
  std::sort(picks.begin(), picks.end());
  return picks;
}

class SinkRecentSelector final : public Selector {
 public:
  bool NeedsScores() const override { return false; }
  ShapeClass EqualCountsClass() const override { return ShapeClass::kS0; }
  absl::Status Select(Backend&, std::span<const SelectInput> cohort) const override {
    for (const SelectInput& input : cohort) {
      KeepList& keep = *input.keep;
      for (int64_t row = 0; row < keep.layers * keep.kv_heads; ++row) {
        const int64_t layer = row / keep.kv_heads, head = row % keep.kv_heads;
        const std::vector<int32_t> picks =
            SelectRow(input.candidates, input.forced, row, keep.Count(layer, head));
        std::copy(picks.begin(), picks.end(), keep.Row(layer, head));
      }
    }
    return absl::OkStatus();
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Selector>> MakeSinkRecentSelector(const StageParams&) {
  return std::make_unique<SinkRecentSelector>();
}

}  // namespace kvern::pipeline
