// Softmax over tokens in f64, blind to what is excluded or not finite.
#ifndef KVERN_KERNELS_REF_SOFT_MAX_H_
#define KVERN_KERNELS_REF_SOFT_MAX_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {

// Excluded tokens hold NaN. With no finite logit, sum is 0.
struct SoftMax {
  double largest = -kInfinity;
  double sum = 0;  // of e^(logit - largest)

  explicit SoftMax(const std::vector<double>& logits) {
    for (const double logit : logits) {
      if (std::isfinite(logit) && logit > largest) largest = logit;
    }
    TokenSum total;
    for (size_t token = 0; token < logits.size(); ++token) {
      if (std::isfinite(logits[token])) total.Add(token, Exp(logits[token] - largest));
    }
    sum = total.Total();
  }
  // NaN for a logit that is not finite.
  double Probability(double logit) const {
    if (!std::isfinite(logit)) return std::numeric_limits<double>::quiet_NaN();
    return Exp(logit - largest) * (1.0 / sum);
  }
  double LogSum() const { return largest + Log(sum); }
};

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_SOFT_MAX_H_
