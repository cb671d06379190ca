// Budgeter: spreads a token total over layers. Host arithmetic, never sees KV bytes.
#ifndef KVERN_SERVER_PIPELINE_BUDGETER_H_
#define KVERN_SERVER_PIPELINE_BUDGETER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/reuse.h"
#include "server/pipeline/sequence_input.h"
#include "server/pipeline/stage_info.h"

namespace kvern::pipeline {

struct BudgetRequest {
  const SequenceInput* input = nullptr;
  // Tokens to spread over layers, for one head of each: sum over layers of the answer equals it
  // (budgets are equal in all heads of a layer), unless every layer is full.
  int64_t total_tokens = 0;
};

class Budgeter {
 public:
  virtual ~Budgeter() = default;
  // Tokens per (layer, head) of each layer, in [0, tokens]; monotone in total_tokens.
  virtual absl::StatusOr<ScratchVector<int64_t>> LayerBudgets(
      const BudgetRequest& request) const = 0;
};

struct BudgeterEntry {
  StageInfo info;
  absl::StatusOr<std::unique_ptr<Budgeter>> (*make)(const StageParams& params);
};

std::span<const BudgeterEntry> Budgeters();
// Errors: InvalidArgument listing the names known, or of the parameters.
absl::StatusOr<std::unique_ptr<Budgeter>> MakeBudgeter(const StageSpec& spec);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_BUDGETER_H_
