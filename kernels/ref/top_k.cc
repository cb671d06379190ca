// Sorts a row's candidates by one integer key and keeps the first.
#include "kernels/ref/top_k.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "kernels/base/order_key.h"
#include "kernels/base/status_macros.h"

namespace kvern::ref {
namespace {

struct RowSets {
  std::vector<int32_t> forced;
  std::vector<uint64_t> ranks;  // of the candidates
};

// Unique per token, so that no two candidates are equal; its own inverse.
uint32_t Precedence(TieRule tie, uint32_t token) {
  return tie == TieRule::kRecent ? token : ~token;
}

RowSets SetsOf(const TopKArgs& args, int64_t layer, int64_t head) {
  RowSets sets;
  const int64_t tokens = args.scores.shape[2];
  for (int64_t token = 0; token < tokens; ++token) {
    if (args.forced(layer, head, token) != 0) {
      sets.forced.push_back(static_cast<int32_t>(token));
    } else if (args.candidates(layer, head, token) != 0) {
      sets.ranks.push_back(RankKey(args.scores(layer, head, token),
                                   Precedence(args.tie, static_cast<uint32_t>(token))));
    }
  }
  return sets;
}

}  // namespace

absl::Status TopK(const StopCheck* stop, const TopKArgs& args, KeepList* keep) {
  KVERN_CHECK(keep->layers == args.scores.shape[0] && keep->kv_heads == args.scores.shape[1]);
  for (int64_t layer = 0; layer < keep->layers; ++layer) {
    for (int64_t head = 0; head < keep->kv_heads; ++head) {
      if (stop != nullptr) KVERN_RETURN_IF_ERROR(stop->Check());
      RowSets sets = SetsOf(args, layer, head);
      const int64_t slots = keep->Count(layer, head) - static_cast<int64_t>(sets.forced.size());
      KVERN_CHECK(slots >= 0 && slots <= static_cast<int64_t>(sets.ranks.size()));
      std::sort(sets.ranks.begin(), sets.ranks.end(), std::greater<>());
      int32_t* row = keep->Row(layer, head);
      int32_t* end = std::copy(sets.forced.begin(), sets.forced.end(), row);
      for (int64_t i = 0; i < slots; ++i) {
        *end++ = static_cast<int32_t>(
            Precedence(args.tie, static_cast<uint32_t>(sets.ranks[i] & 0xFFFFFFFFu)));
      }
      std::sort(row, end);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
