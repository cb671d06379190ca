// Reduces the score rows of the query heads that share one kv_head.
#ifndef KVERN_KERNELS_REF_GROUP_SCORES_H_
#define KVERN_KERNELS_REF_GROUP_SCORES_H_

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/ref/rows.h"

namespace kvern::ref {

// Query heads are added in order; a token with NaN in any of them has no score.
class GroupScores {
 public:
  GroupScores(GroupReduce reduce, int64_t tokens)
      : reduce_(reduce), reduced_(tokens, reduce == GroupReduce::kMean ? 0.0 : -kInfinity) {}

  void Add(const std::vector<double>& row) {
    ++rows_;
    for (size_t token = 0; token < reduced_.size(); ++token) {
      double& reduced = reduced_[token];
      if (reduce_ == GroupReduce::kMean) {
        reduced += row[token];
      } else {
        reduced = row[token] > reduced || std::isnan(row[token]) ? row[token] : reduced;
      }
    }
  }
  double Score(int64_t token) const {
    return reduce_ == GroupReduce::kMean ? reduced_[token] / static_cast<double>(rows_)
                                         : reduced_[token];
  }

 private:
  GroupReduce reduce_;
  int64_t rows_ = 0;
  std::vector<double> reduced_;
};

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_GROUP_SCORES_H_
