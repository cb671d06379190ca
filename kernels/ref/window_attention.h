// SnapKV scores: attention of the last queries. The contract is Backend's (kernels/backend.h).
// `stop` may be null.
#ifndef KVERN_KERNELS_REF_WINDOW_ATTENTION_H_
#define KVERN_KERNELS_REF_WINDOW_ATTENTION_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status WindowAttention(const StopCheck* stop, const WindowAttentionArgs& args,
                             ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_WINDOW_ATTENTION_H_
