// SnapKV scores: attention of the last queries. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_WINDOW_ATTENTION_H_
#define KVERN_KERNELS_CPU_WINDOW_ATTENTION_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status WindowAttention(Runner& runner, const WindowAttentionArgs& args, ScoreView scores);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_WINDOW_ATTENTION_H_
