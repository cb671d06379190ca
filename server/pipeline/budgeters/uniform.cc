// The same tokens in every layer; an odd rest goes to the first layers.
#include <vector>

#include "server/pipeline/budgeter.h"
#include "server/pipeline/budgeters/apportion.h"

namespace kvern::pipeline {

namespace {

class UniformBudgeter : public Budgeter {
 public:
  absl::StatusOr<ScratchVector<int64_t>> LayerBudgets(const BudgetRequest& request) const override {
    const ScratchVector<double> equal(static_cast<size_t>(request.input->Layers()), 1.0);
    return Apportion(equal, request.total_tokens, request.input->Tokens());
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Budgeter>> MakeUniformBudgeter(const StageParams&) {
  return std::make_unique<UniformBudgeter>();
}

}  // namespace kvern::pipeline
