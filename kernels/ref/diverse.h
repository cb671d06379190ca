// alpha: selection with a diversity penalty (retention.md 9.1). The contract is Backend's
// (kernels/backend.h). `stop` may be null.
#ifndef KVERN_KERNELS_REF_DIVERSE_H_
#define KVERN_KERNELS_REF_DIVERSE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace kvern::ref {

absl::Status Diverse(const StopCheck* stop, const DiverseArgs& args, KeepList* keep);

// One problem (the rows of a group, or one row): `picks` candidates in the order they are picked.
absl::StatusOr<std::vector<int32_t>> DiversePicks(const StopCheck* stop, const DiverseArgs& args,
                                                  std::span<const int64_t> rows, int64_t picks);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_DIVERSE_H_
