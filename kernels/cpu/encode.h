// Codes kept rows into packed blocks. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_ENCODE_H_
#define KVERN_KERNELS_CPU_ENCODE_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status Encode(Runner& runner, const EncodeArgs& args, EncodeCounts* counts);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_ENCODE_H_
