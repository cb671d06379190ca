// TriAttention scores (retention.md 3.2, 4.1). The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_TRI_ATTENTION_H_
#define KVERN_KERNELS_CPU_TRI_ATTENTION_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status TriAttention(Runner& runner, const TriAttentionArgs& args);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_TRI_ATTENTION_H_
