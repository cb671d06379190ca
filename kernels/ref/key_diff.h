// KeyDiff scores: how far a key points from the mean direction. The contract is Backend's
// (kernels/backend.h). `stop` may be null.
#ifndef KVERN_KERNELS_REF_KEY_DIFF_H_
#define KVERN_KERNELS_REF_KEY_DIFF_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status KeyDiff(const StopCheck* stop, const KeyDiffArgs& args, ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_KEY_DIFF_H_
