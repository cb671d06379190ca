// A forward pass per head: each kept row moves to its slot, turned to its new position if asked.
#include "kernels/ref/gather.h"

#include <vector>

#include "kernels/base/band_rotation.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/lanes.h"
#include "kernels/base/status_macros.h"

namespace kvern::ref {
namespace {

struct Move {
  int64_t layer;
  int64_t head;
  int64_t source;
  int64_t slot;
};

// Where the angle does not change, bytes move as they are.
bool Turns(const GatherArgs& args, const Move& move) {
  if (args.from == nullptr) return false;
  const RotationRow from = RowOf(*args.from, args.from->Row(move.layer, move.head, move.source));
  const RotationRow to = RowOf(*args.to, args.to->Row(move.layer, move.head, move.slot));
  return !SameAngles(from, to);
}

void MoveRow(const GatherArgs& args, const Move& move) {
  const KvRef& in = args.in[move.layer];
  const KvRef& out = args.out[move.layer];
  std::byte* source = in.Address(move.head, move.source);
  std::byte* target = out.Address(move.head, move.slot);
  if (!Turns(args, move)) {
    if (source == target) return;
    CopyRowBytes({source, in.strides.dim}, {target, out.strides.dim}, in.head_dim,
                 SizeOf(in.dtype));
    return;
  }
  std::vector<float> x(in.head_dim);
  LoadKvRow(in, source, x.data());
  UnrotateRow(RowOf(*args.from, args.from->Row(move.layer, move.head, move.source)), x.data());
  RotateRow(RowOf(*args.to, args.to->Row(move.layer, move.head, move.slot)), x.data());
  StoreKvRow(out, x.data(), target);
}

}  // namespace

absl::Status Gather(const StopCheck* stop, const GatherArgs& args) {
  KVERN_CHECK((args.from == nullptr) == (args.to == nullptr));
  KVERN_CHECK(args.from == nullptr || args.from->bands == args.to->bands);
  if (stop != nullptr) KVERN_RETURN_IF_ERROR(stop->Check());
  // A pass in place cannot be left half way: what it has overwritten is gone.
  if (args.in_place) stop = nullptr;
  for (int64_t layer = 0; layer < args.keep->layers; ++layer) {
    KVERN_CHECK(args.in[layer].dtype == args.out[layer].dtype);
    for (int64_t head = 0; head < args.keep->kv_heads; ++head) {
      const int32_t* kept = args.keep->Row(layer, head);
      const int64_t count = args.keep->Count(layer, head);
      KVERN_CHECK(count <= args.out[layer].tokens);
      for (int64_t slot = args.first_slot; slot < count; ++slot) {
        if (stop != nullptr && slot % kTileTokens == 0) KVERN_RETURN_IF_ERROR(stop->Check());
        KVERN_CHECK(!args.in_place || slot <= kept[slot]);
        MoveRow(args, {layer, head, kept[slot], slot});
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
