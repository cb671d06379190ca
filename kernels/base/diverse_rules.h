// The arithmetic of alpha (retention.md 9.1) that every backend shares, one pair at a time.
#ifndef KVERN_KERNELS_BASE_DIVERSE_RULES_H_
#define KVERN_KERNELS_BASE_DIVERSE_RULES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/base/host_device.h"

namespace kvern {

// 1 / |v| from |v|^2; 0 for a vector shorter than 1e-12, which then has cos 0 with everything.
KVERN_HD inline float InverseLength(float squared_length) {
  return squared_length < 1e-24f ? 0.0f : 1.0f / std::sqrt(squared_length);
}

// cos of two rows from their dot product, in [-1, 1]; 0 where it is not a number.
KVERN_HD inline float RowCosine(float dot, float inverse_a, float inverse_b) {
  const float cosine = dot * (inverse_a * inverse_b);
  if (cosine != cosine) return 0.0f;
  return std::clamp(cosine, -1.0f, 1.0f);
}

// What a candidate loses by being like a pick: the mean over the group's rows, negatives cut.
KVERN_HD inline float Redundancy(double cosine_sum, int64_t rows) {
  const float mean = static_cast<float>(cosine_sum / static_cast<double>(rows));
  return mean > 0.0f ? std::min(mean, 1.0f) : 0.0f;
}

// Two roundings, so that it never grows with `redundancy`: lazy evaluation rests on that.
KVERN_HD inline float DiverseGain(float score, float lambda, float redundancy) {
  return score - lambda * redundancy;
}

// Candidates' scores to [0, 1] by their smallest and largest finite score; infinities go to the
// ends, NaN stays, equal scores become 0.
inline void ScaleToUnit(std::span<float> scores) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (const float score : scores) {
    if (!std::isfinite(score)) continue;
    low = std::min<double>(low, score);
    high = std::max<double>(high, score);
  }
  for (float& score : scores) {
    if (score != score) continue;
    if (high > low) {
      score = static_cast<float>(std::clamp((score - low) / (high - low), 0.0, 1.0));
    } else {
      score = score == std::numeric_limits<float>::infinity() ? 1.0f : 0.0f;
    }
  }
}

// Each inner list is one selection problem: the groups, then the rows that are in none.
inline std::vector<std::vector<int64_t>> DiverseProblems(
    const std::vector<std::vector<int64_t>>& groups, int64_t rows) {
  std::vector<std::vector<int64_t>> problems;
  std::vector<bool> grouped(rows, false);
  for (const std::vector<int64_t>& group : groups) {
    if (!group.empty()) problems.push_back(group);
    for (const int64_t row : group) grouped[row] = true;
  }
  for (int64_t row = 0; row < rows; ++row) {
    if (!grouped[row]) problems.push_back({row});
  }
  return problems;
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_DIVERSE_RULES_H_
