// Scores from accumulated attention mass. The contract is Backend's (kernels/backend.h). `stop` may
// be null.
#ifndef KVERN_KERNELS_REF_ATTENTION_MASS_H_
#define KVERN_KERNELS_REF_ATTENTION_MASS_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status AttentionMass(const StopCheck* stop, const AttentionMassArgs& args, ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_ATTENTION_MASS_H_
