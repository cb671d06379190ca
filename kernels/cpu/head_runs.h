// Heads of one layer that one worker reads together: in paged caches the rows of all heads of a
// token lie side by side, and memory answers neighbours much faster than strangers.
#ifndef KVERN_KERNELS_CPU_HEAD_RUNS_H_
#define KVERN_KERNELS_CPU_HEAD_RUNS_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

struct HeadRun {
  const Runner& runner;  // for Check
  Scratch& scratch;      // reset, for this run alone
  int64_t layer;
  int64_t first;  // heads [first, first + count)
  int64_t count;
};

// Heads that are worth reading together: 1 where each lies in memory of its own.
inline int64_t NearHeads(LayerRefs layers, int64_t kv_heads) {
  constexpr int64_t kNearBytes = 16 << 10;
  for (const KvRef& ref : layers) {
    if (std::abs(ref.strides.head) >= kNearBytes) return 1;
  }
  return kv_heads;
}

// Runs work for all heads of `shape` ([layers, kv_heads, tokens]), at most `most_heads` at a time
// and few enough to keep all workers busy.
inline absl::Status ForEachHeadRun(Runner& runner, const int64_t (&shape)[3], int64_t most_heads,
                                   absl::FunctionRef<absl::Status(const HeadRun&)> work) {
  const int64_t kv_heads = shape[1];
  const int64_t share = (shape[0] * kv_heads + runner.Threads() - 1) / runner.Threads();
  const int64_t heads = std::max<int64_t>(1, std::min({share, most_heads, kv_heads}));
  const int64_t runs = (kv_heads + heads - 1) / heads;
  return runner.ForEach(shape[0] * runs, [&](int64_t item, int worker) {
    Scratch& scratch = runner.ScratchOf(worker);
    scratch.Reset();
    const int64_t first = item % runs * heads;
    return work({runner, scratch, item / runs, first, std::min(heads, kv_heads - first)});
  });
}

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_HEAD_RUNS_H_
