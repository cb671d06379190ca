// Expected attention scores. The contract is Backend's (kernels/backend.h). `stop` may be null.
#ifndef KVERN_KERNELS_REF_EXPECTED_ATTENTION_H_
#define KVERN_KERNELS_REF_EXPECTED_ATTENTION_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status ExpectedAttention(const StopCheck* stop, const ExpectedAttentionArgs& args,
                               ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_EXPECTED_ATTENTION_H_
