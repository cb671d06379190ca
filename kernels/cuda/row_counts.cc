// Rows that layers or heads share are counted once.
#include "kernels/cuda/row_counts.h"

#include <map>
#include <utility>

#include "kernels/base/status_macros.h"

namespace kvern::cuda {
namespace {

struct MaskBytes {
  const uint8_t* data;
  int64_t stride;
};

RowCounts CountRow(MaskBytes candidates, MaskBytes forced, int64_t tokens) {
  RowCounts counts;
  for (int64_t token = 0; token < tokens; ++token) {
    const int32_t is_forced = forced.data[token * forced.stride] != 0;
    const int32_t is_candidate = candidates.data[token * candidates.stride] != 0;
    counts.forced += is_forced;
    counts.candidates += is_candidate & (1 - is_forced);
  }
  return counts;
}

}  // namespace

std::vector<RowCounts> CountRows(MaskView candidates, MaskView forced) {
  for (int axis = 0; axis < 3; ++axis) KVERN_CHECK(candidates.shape[axis] == forced.shape[axis]);
  std::map<std::pair<const uint8_t*, const uint8_t*>, RowCounts> known;
  std::vector<RowCounts> rows;
  for (int64_t layer = 0; layer < forced.shape[0]; ++layer) {
    for (int64_t head = 0; head < forced.shape[1]; ++head) {
      const uint8_t* const of_candidates = candidates.At(layer, head);
      const uint8_t* const of_forced = forced.At(layer, head);
      const auto [counts, added] = known.try_emplace({of_candidates, of_forced});
      if (added) {
        counts->second = CountRow({of_candidates, candidates.stride[2]},
                                  {of_forced, forced.stride[2]}, forced.shape[2]);
      }
      rows.push_back(counts->second);
    }
  }
  return rows;
}

}  // namespace kvern::cuda
