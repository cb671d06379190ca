// Counted keys are un-rotated in a small tile and added coordinate by coordinate.
#include "kernels/cpu/mean_key.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mean_key.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/dim_sums-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

absl::Status MeanKeyHead(const HeadProblem& problem, const MeanKeyArgs& args,
                         TensorView<Float16, 3> mean) {
  const auto [runner, scratch, layer, head] = problem;
  const KvRef& keys = args.keys[layer];
  const int64_t tokens = TokensOf(keys, head, args.counted.shape[2]);
  const TensorView<float, 2> tile = TakeTile<float>(scratch, kChunkTokens, keys.head_dim);
  DimSums sums(scratch, keys.head_dim);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  std::fill(tile.data, tile.data + tile.Size(), 0.0f);
  sums.Clear();
  int64_t added = 0;
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kChunkTokens, tokens - first);
    LoadRows(keys, head, first, FirstRows(tile, count));
    for (int64_t r = 0; r < count; ++r) {
      const int64_t token = first + r;
      float* key = tile.At(r);
      if (args.counted(layer, head, token) == 0 || !AllFinite(key, keys.head_dim)) continue;
      if (args.rotation != nullptr) {
        const int64_t angles = args.rotation->Row(layer, head, token);
        TurnRow<Turn::kUnrotate>(RowOf(*args.rotation, angles), key);
      }
      sums.Add(token, key, 1.0);
      ++added;
    }
    const int64_t next = first + kChunkTokens;
    if (next % kTileTokens == 0 || next >= tokens) sums.CloseTile();
  }
  for (int64_t i = 0; i < keys.head_dim; ++i) {
    mean(layer, head, i) = RoundedMean(sums.totals()[i], added);
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(MeanKeyHead);

absl::Status MeanKey(Runner& runner, const MeanKeyArgs& args, TensorView<Float16, 3> mean) {
  return ForEachHead(runner, mean.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(MeanKeyHead)(problem, args, mean);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
