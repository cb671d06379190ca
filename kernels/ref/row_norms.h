// |row| of every token. The contract is Backend's (kernels/backend.h). `stop` may be null.
#ifndef KVERN_KERNELS_REF_ROW_NORMS_H_
#define KVERN_KERNELS_REF_ROW_NORMS_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status RowNorms(const StopCheck* stop, LayerRefs rows, ScoreView norms);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_ROW_NORMS_H_
