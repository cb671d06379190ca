// Heads that must keep the same tokens get one score row: the mean or the maximum of theirs.
#include "kernels/ref/share_rows.h"

#include <cmath>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

float* RowOf(ScoreView scores, int64_t row) {
  return scores.At(row / scores.shape[1], row % scores.shape[1]);
}

// NaN if any member is.
double Reduce(const std::vector<double>& members, GroupReduce reduce) {
  double sum = 0;
  double largest = -kInfinity;
  for (const double member : members) {
    if (std::isnan(member)) return member;
    sum += member;
    largest = member > largest ? member : largest;
  }
  return reduce == GroupReduce::kMean ? sum / static_cast<double>(members.size()) : largest;
}

}  // namespace

absl::Status ShareRows(const StopCheck* stop, const std::vector<std::vector<int64_t>>& groups,
                       GroupReduce reduce, ScoreView scores) {
  std::vector<double> members;
  for (const std::vector<int64_t>& group : groups) {
    KVERN_RETURN_IF_ERROR(Check(stop));
    for (int64_t token = 0; token < scores.shape[2]; ++token) {
      members.clear();
      for (const int64_t row : group) {
        members.push_back(RowOf(scores, row)[token * scores.stride[2]]);
      }
      const double shared = Reduce(members, reduce);
      for (const int64_t row : group) {
        RowOf(scores, row)[token * scores.stride[2]] =
            std::isnan(shared) ? NoScore() : static_cast<float>(shared);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
