// One score row for a group of heads. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_SHARE_ROWS_H_
#define KVERN_KERNELS_CPU_SHARE_ROWS_H_

#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status ShareRows(Runner& runner, const std::vector<std::vector<int64_t>>& groups,
                       GroupReduce reduce, ScoreView scores);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_SHARE_ROWS_H_
