// Moves kept rows to their new slots. The contract is Backend's (kernels/backend.h). `stop` may be
// null.
#ifndef KVERN_KERNELS_REF_GATHER_H_
#define KVERN_KERNELS_REF_GATHER_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status Gather(const StopCheck* stop, const GatherArgs& args);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_GATHER_H_
