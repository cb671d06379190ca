// One score row for a group of heads. The contract is Backend's (kernels/backend.h). `stop` may be
// null.
#ifndef KVERN_KERNELS_REF_SHARE_ROWS_H_
#define KVERN_KERNELS_REF_SHARE_ROWS_H_

#include <vector>

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status ShareRows(const StopCheck* stop, const std::vector<std::vector<int64_t>>& groups,
                       GroupReduce reduce, ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_SHARE_ROWS_H_
