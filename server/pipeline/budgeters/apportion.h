// Integers in proportion to weights, summing exactly: largest remainder under a cap.
#ifndef KVERN_SERVER_PIPELINE_BUDGETERS_APPORTION_H_
#define KVERN_SERVER_PIPELINE_BUDGETERS_APPORTION_H_

#include <cstdint>
#include <vector>

#include "kernels/base/reuse.h"

namespace kvern::pipeline {

// Splits `total` >= 0 by `weights` (finite, >= 0; all zero counts as all equal), each share at most
// `cap` >= 0. What a full share cannot take goes to the others in proportion. The sum is
// min(total, weights.size() * cap). Equal remainders: the lower index first.
ScratchVector<int64_t> Apportion(const std::vector<double>& weights, int64_t total, int64_t cap);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_BUDGETERS_APPORTION_H_
