// TriAttention scores (retention.md 3.2, 4.1). The contract is Backend's (kernels/backend.h).
// `stop` may be null.
#ifndef KVERN_KERNELS_REF_TRI_ATTENTION_H_
#define KVERN_KERNELS_REF_TRI_ATTENTION_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status TriAttention(const StopCheck* stop, const TriAttentionArgs& args, ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_TRI_ATTENTION_H_
