// One f32 lane sum of squares and one root per row.
#include "kernels/ref/row_norms.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {

absl::Status RowNorms(const StopCheck* stop, LayerRefs rows, ScoreView norms) {
  for (int64_t layer = 0; layer < norms.shape[0]; ++layer) {
    const KvRef& ref = rows[layer];
    std::vector<float> row(ref.head_dim);
    for (int64_t head = 0; head < norms.shape[1]; ++head) {
      const int64_t tokens = TokensOf(ref, head, norms.shape[2]);
      for (int64_t token = 0; token < norms.shape[2]; ++token) {
        KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
        norms(layer, head, token) = NoScore();
        if (token >= tokens) continue;
        LoadRow(ref, head, token, row.data());
        norms(layer, head, token) = ScoreFrom(Norm(row.data(), ref.head_dim));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
