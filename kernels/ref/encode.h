// Codes kept rows into packed blocks. The contract is Backend's (kernels/backend.h). `stop` may be
// null.
#ifndef KVERN_KERNELS_REF_ENCODE_H_
#define KVERN_KERNELS_REF_ENCODE_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status Encode(const StopCheck* stop, const EncodeArgs& args, EncodeCounts* counts);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_ENCODE_H_
