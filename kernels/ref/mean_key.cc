// Mean of the finite counted keys before their rotation.
#include "kernels/ref/mean_key.h"

#include <vector>

#include "kernels/base/coding.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

absl::Status MeanOfHead(const HeadProblem& problem, const MeanKeyArgs& args, Float16* mean) {
  const auto [stop, layer, head] = problem;
  const KvRef& keys = args.keys[layer];
  std::vector<float> row(keys.head_dim);
  std::vector<TokenSum> sums(keys.head_dim);
  int64_t count = 0;
  const int64_t tokens = TokensOf(keys, head, args.counted.shape[2]);
  for (int64_t token = 0; token < tokens; ++token) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
    if (args.counted(layer, head, token) == 0) continue;
    LoadRow(keys, head, token, row.data());
    if (!AllFinite(row.data(), keys.head_dim)) continue;
    if (args.rotation != nullptr) {
      Unrotate(*args.rotation, args.rotation->Row(layer, head, token), row.data());
    }
    for (int32_t d = 0; d < keys.head_dim; ++d) sums[d].Add(token, row[d]);
    ++count;
  }
  for (int32_t d = 0; d < keys.head_dim; ++d) mean[d] = RoundedMean(sums[d].Total(), count);
  return absl::OkStatus();
}

}  // namespace

absl::Status MeanKey(const StopCheck* stop, const MeanKeyArgs& args, TensorView<Float16, 3> mean) {
  for (int64_t layer = 0; layer < mean.shape[0]; ++layer) {
    for (int64_t head = 0; head < mean.shape[1]; ++head) {
      std::vector<Float16> row(mean.shape[2]);
      KVERN_RETURN_IF_ERROR(MeanOfHead({stop, layer, head}, args, row.data()));
      for (int64_t d = 0; d < mean.shape[2]; ++d) mean(layer, head, d) = row[d];
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
