// Restores rows from packed blocks. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_DECODE_H_
#define KVERN_KERNELS_CPU_DECODE_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status Decode(Runner& runner, const DecodeArgs& args);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_DECODE_H_
