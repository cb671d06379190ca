// alpha: selection with a diversity penalty (retention.md 9.1). The contract is Backend's
// (kernels/backend.h). `stop` may be null.
#ifndef KVERN_KERNELS_REF_DIVERSE_H_
#define KVERN_KERNELS_REF_DIVERSE_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status Diverse(const StopCheck* stop, const DiverseArgs& args, KeepList* keep);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_DIVERSE_H_
