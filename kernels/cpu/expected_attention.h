// Expected attention scores. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_EXPECTED_ATTENTION_H_
#define KVERN_KERNELS_CPU_EXPECTED_ATTENTION_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status ExpectedAttention(Runner& runner, const ExpectedAttentionArgs& args, ScoreView scores);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_EXPECTED_ATTENTION_H_
