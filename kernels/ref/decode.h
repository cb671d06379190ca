// Restores rows from packed blocks. The contract is Backend's (kernels/backend.h). `stop` may be
// null.
#ifndef KVERN_KERNELS_REF_DECODE_H_
#define KVERN_KERNELS_REF_DECODE_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status Decode(const StopCheck* stop, const DecodeArgs& args);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_DECODE_H_
