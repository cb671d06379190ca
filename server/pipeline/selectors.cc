// Every selector this build knows: one line each, its parameters above it.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/quoted.h"
#include "server/pipeline/selector.h"

namespace kvern::pipeline {

using MadeSelector = absl::StatusOr<std::unique_ptr<Selector>>;
MadeSelector MakeTopKSelector(const StageParams& params);
MadeSelector MakeDiverseSelector(const StageParams& params);
MadeSelector MakeSinkRecentSelector(const StageParams& params);

namespace {

constexpr uint8_t kAnyClass = 0x1F;
constexpr uint8_t kAllButPerLayerSets = 0x1D;  // S0, S2 (heads of unequal length), S3, S4

constexpr ParamSpec kTie = {"tie", ParamType::kEnum, "recent", "recent|oldest",
                            "which position wins between equal scores"};
constexpr ParamSpec kShare = {"share", ParamType::kEnum, "none", "none|heads|layers|all",
                              "whose sets must be the same"};
constexpr ParamSpec kReduce = {"reduce", ParamType::kEnum, "mean", "mean|max",
                               "how scores combine for shared sets"};

constexpr ParamSpec kTopKParams[] = {kTie, kShare, kReduce};
constexpr ParamSpec kDiverseParams[] = {
    {"lambda", ParamType::kFloat, "0.5", "0..1000", "weight of the likeness to earlier picks"},
    {"scale", ParamType::kEnum, "asis", "asis|minmax", "scale of the scores beside it"},
    kTie,
    kShare,
    kReduce};

constexpr SelectorEntry kSelectors[] = {
    {{"topk", "The highest scores.", kTopKParams, kNeedsNothing, kAnyClass}, &MakeTopKSelector},
    {{"diverse",
      "The highest scores less the likeness of values to earlier picks (alpha, arXiv "
      "2605.14292).",
      kDiverseParams, kNeedsValues, kAnyClass},
     &MakeDiverseSelector},
    {{"sink_recent",
      "The first and the last tokens (StreamingLLM, arXiv 2309.17453).",
      {},
      kNeedsNothing,
      kAllButPerLayerSets},
     &MakeSinkRecentSelector},
};

}  // namespace

std::span<const SelectorEntry> Selectors() { return kSelectors; }

absl::StatusOr<std::unique_ptr<Selector>> MakeSelector(const StageSpec& spec) {
  std::vector<const char*> known;
  for (const SelectorEntry& entry : kSelectors) {
    if (spec.name == entry.info.name) {
      KVERN_ASSIGN_OR_RETURN(const StageParams params, StageParams::Parse(spec, entry.info.params));
      return entry.make(params);
    }
    known.push_back(entry.info.name);
  }
  return WithField(
      absl::InvalidArgumentError(absl::StrCat("selector: got ", Quoted(spec.name), ", want one of ",
                                              absl::StrJoin(known, ", "))),
      "name");
}

}  // namespace kvern::pipeline
