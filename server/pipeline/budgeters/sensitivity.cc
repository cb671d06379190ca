// Layers get a floor, then in proportion to a power of the sensitivity that a calibration measured
// (quality.md 2.5).
#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/budgeter.h"
#include "server/pipeline/budgeters/apportion.h"

namespace kvern::pipeline {

namespace {

class SensitivityBudgeter : public Budgeter {
 public:
  SensitivityBudgeter(double power, int64_t floor) : power_(power), floor_(floor) {}

  absl::StatusOr<ScratchVector<int64_t>> LayerBudgets(const BudgetRequest& request) const override {
    const SequenceInput& input = *request.input;
    KVERN_ASSIGN_OR_RETURN(const std::vector<double> weights, Weights(input));
    const int64_t layers = input.Layers();
    if (layers == 0) return ScratchVector<int64_t>();
    const int64_t tokens = input.Tokens();
    const int64_t floor = std::min(floor_, tokens);
    // Below the floor there is nothing to weigh: layers are then equal.
    if (request.total_tokens <= layers * floor) {
      const ScratchVector<double> equal(weights.size(), 1.0);
      return Apportion(equal, request.total_tokens, tokens);
    }
    ScratchVector<int64_t> budgets =
        Apportion(weights, request.total_tokens - layers * floor, tokens - floor);
    for (int64_t& budget : budgets) budget += floor;
    return budgets;
  }

 private:
  absl::StatusOr<std::vector<double>> Weights(const SequenceInput& input) const {
    const QueryCentres* centres = input.calibrations->centres.get();
    if (centres == nullptr || centres->layer_sensitivity.empty()) {
      return WithReason(absl::FailedPreconditionError("sensitivity needs layer_sensitivity"),
                        "INPUT_MISSING");
    }
    const std::vector<float>& sensitivity = centres->layer_sensitivity;
    ScratchVector<double> weights;
    weights.reserve(input.layer_indices.size());
    for (const int32_t layer : input.layer_indices) {
      if (layer < 0 || static_cast<size_t>(layer) >= sensitivity.size()) {
        return absl::InvalidArgumentError(absl::StrCat("layer_sensitivity got ", sensitivity.size(),
                                                       " layers, want more than ", layer));
      }
      const double value = sensitivity[static_cast<size_t>(layer)];
      if (!std::isfinite(value) || value < 0) {
        return absl::InvalidArgumentError(absl::StrCat("layer_sensitivity of layer ", layer,
                                                       " got ", value, ", want finite and >= 0"));
      }
      // A float's fourth power stays finite in f64, and so does the sum over 512 layers.
      weights.push_back(power_ == 0.5 ? std::sqrt(value) : std::pow(value, power_));
    }
    return weights;
  }

  double power_;
  int64_t floor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Budgeter>> MakeSensitivityBudgeter(const StageParams& params) {
  return std::make_unique<SensitivityBudgeter>(params.Float("power"), params.Int("floor"));
}

}  // namespace kvern::pipeline
