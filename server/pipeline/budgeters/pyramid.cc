// A linear ramp that gives the first layers most: PyramidKV, for parity with published results.
#include <algorithm>
#include <cmath>
#include <vector>

#include "server/pipeline/budgeter.h"
#include "server/pipeline/budgeters/apportion.h"

namespace kvern::pipeline {

namespace {

struct Ramp {
  double first;
  double last;
};

// Ramp of mean `mean` whose last layer has mean / beta, flattened where the first exceeds `cap`.
Ramp RampOf(double mean, double beta, double cap) {
  const double last = mean / beta;
  const double first = 2 * mean - last;
  if (first < cap) return {first, last};
  return {cap, 2 * mean - cap};
}

double At(const Ramp& ramp, int64_t layer, int64_t layers) {
  if (layers == 1) return ramp.first;
  const double step = (ramp.first - ramp.last) / static_cast<double>(layers - 1);
  return ramp.first - static_cast<double>(layer) * step;
}

class PyramidBudgeter : public Budgeter {
 public:
  PyramidBudgeter(double beta, int64_t window) : beta_(beta), window_(window) {}

  // The window is every layer's; the ramp shares out the rest.
  absl::StatusOr<ScratchVector<int64_t>> LayerBudgets(const BudgetRequest& request) const override {
    const int64_t layers = request.input->Layers();
    if (layers == 0) return ScratchVector<int64_t>();
    const int64_t tokens = request.input->Tokens();
    const int64_t window = std::min({window_, request.total_tokens / layers, tokens});
    const int64_t rest = std::min(request.total_tokens, layers * tokens) - layers * window;
    const double mean = static_cast<double>(rest) / static_cast<double>(layers);
    const Ramp ramp = RampOf(mean, beta_, static_cast<double>(tokens - window));
    ScratchVector<double> weights;
    for (int64_t layer = 0; layer < layers; ++layer) {
      weights.push_back(std::max(0.0, At(ramp, layer, layers)));
    }
    ScratchVector<int64_t> budgets = Apportion(weights, rest, tokens - window);
    for (int64_t& budget : budgets) budget += window;
    return budgets;
  }

 private:
  double beta_;
  int64_t window_;
};

// kvpress 0.5.5 get_layer_budget: half-to-even rounding, window inside the ramp, flat where the
// ramp does not fit. Sums are off by the rounding, as they are there.
class KvpressPyramidBudgeter : public Budgeter {
 public:
  KvpressPyramidBudgeter(double beta, int64_t window)
      : beta_(beta), window_(static_cast<double>(window)) {}

  absl::StatusOr<ScratchVector<int64_t>> LayerBudgets(const BudgetRequest& request) const override {
    const int64_t layers = request.input->Layers();
    if (layers == 0) return ScratchVector<int64_t>();
    const double tokens = static_cast<double>(request.input->Tokens());
    const double mean =
        std::min(static_cast<double>(request.total_tokens) / static_cast<double>(layers), tokens);
    const Ramp ramp = RampOf(mean, beta_, tokens - window_);
    const bool fits = tokens >= ramp.first && ramp.first >= ramp.last && ramp.last >= window_;
    ScratchVector<int64_t> budgets;
    for (int64_t layer = 0; layer < layers; ++layer) {
      const double share = fits ? At(ramp, layer, layers) : mean;
      const double least = std::min(1.0, tokens);
      budgets.push_back(static_cast<int64_t>(std::max(least, std::nearbyint(share))));
    }
    return budgets;
  }

 private:
  double beta_;
  double window_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Budgeter>> MakePyramidBudgeter(const StageParams& params) {
  const double beta = static_cast<double>(params.Int("beta"));
  const int64_t window = params.Int("window");
  if (params.Enum("compat") == "kvpress") {
    return std::make_unique<KvpressPyramidBudgeter>(beta, window);
  }
  return std::make_unique<PyramidBudgeter>(beta, window);
}

}  // namespace kvern::pipeline
