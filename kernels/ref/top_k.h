// Selection of the best candidates. The contract is Backend's (kernels/backend.h). `stop` may be
// null.
#ifndef KVERN_KERNELS_REF_TOP_K_H_
#define KVERN_KERNELS_REF_TOP_K_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status TopK(const StopCheck* stop, const TopKArgs& args, KeepList* keep);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_TOP_K_H_
