// Keeps the highest scores.
#include <vector>

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/selector.h"
#include "server/pipeline/selectors/sharing.h"

namespace kvern::pipeline {
namespace {

class TopKSelector final : public Selector {
 public:
  explicit TopKSelector(const StageParams& params)
      : sharing_(SharingFrom(params)),
        tie_(params.Enum("tie") == "oldest" ? TieRule::kOldest : TieRule::kRecent) {}

  bool NeedsScores() const override { return true; }
  ShapeClass EqualCountsClass() const override { return ClassOf(sharing_.share); }
  absl::Status Select(Backend& backend, std::span<const SelectInput> cohort) const override {
    KVERN_RETURN_IF_ERROR(ShareScores(backend, sharing_, cohort));
    ScratchVector<TopKArgs> args;
    for (const SelectInput& input : cohort) {
      args.push_back({.scores = input.scores,
                      .candidates = input.candidates,
                      .forced = input.forced,
                      .tie = tie_,
                      .keep = input.keep});
    }
    return backend.TopK(args);
  }

 private:
  const Sharing sharing_;
  const TieRule tie_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Selector>> MakeTopKSelector(const StageParams& params) {
  return std::make_unique<TopKSelector>(params);
}

}  // namespace kvern::pipeline
