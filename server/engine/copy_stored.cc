// Keeping every token is a copy; one layer's indices at a time bound what the host holds of them.
#include "server/engine/copy_stored.h"

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

KeepList AllOf(const KvRef& rows) {
  std::vector<int32_t> counts;
  for (int64_t head = 0; head < rows.kv_heads; ++head) {
    counts.push_back(static_cast<int32_t>(rows.Length(head)));
  }
  KeepList keep = KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, rows.kv_heads));
  for (int64_t head = 0; head < rows.kv_heads; ++head) {
    int32_t* slots = keep.Row(0, head);
    std::iota(slots, slots + counts[head], 0);
  }
  return keep;
}

}  // namespace

absl::Status CopyTokens(Backend& backend, const memory::StoredSequence& from,
                        const memory::StoredSequence& to) {
  const auto layers = static_cast<int64_t>(from.Info().layer_indices.size());
  for (int64_t layer = 0; layer < layers; ++layer) {
    const KvRef read[] = {from.Keys(layer), from.Values(layer)};
    const KvRef written[] = {to.Keys(layer), to.Values(layer)};
    const KeepList keep = AllOf(read[0]);
    std::vector<GatherArgs> moves;
    for (int role = 0; role < 2; ++role) {
      moves.push_back(
          {.in = std::span(&read[role], 1), .keep = &keep, .out = std::span(&written[role], 1)});
    }
    KVERN_RETURN_IF_ERROR(backend.Gather(moves));
  }
  return backend.Finish();
}

}  // namespace kvern::engine
