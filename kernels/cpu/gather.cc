// A worker moves the kept rows of one head, in slot order; heads share no bytes.
#include "kernels/cpu/gather.h"

#include "kernels/base/status_macros.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gather.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target, the baseline last
// After the list of targets.
#include "hwy/highway.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/rotation-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace {

struct Head {
  int64_t layer;
  int64_t head;
};

// Moves one row. Where the angle does not change, bytes move as they are.
void MoveRow(const GatherArgs& args, const Head& at, int64_t slot, float* HWY_RESTRICT x) {
  const KvRef& in = args.in[at.layer];
  const KvRef& out = args.out[at.layer];
  const int64_t source_token = args.keep->Row(at.layer, at.head)[slot];
  std::byte* source = in.Address(at.head, source_token);
  std::byte* target = out.Address(at.head, slot);
  if (args.from != nullptr) {
    const RotationRow from = RowOf(*args.from, args.from->Row(at.layer, at.head, source_token));
    const RotationRow to = RowOf(*args.to, args.to->Row(at.layer, at.head, slot));
    if (!SameAngles(from, to)) {
      LoadRow(in, source, x);
      TurnRow<Turn::kUnrotate>(from, x);
      TurnRow<Turn::kRotate>(to, x);
      StoreRow(out, x, target);
      return;
    }
  }
  if (source == target) return;
  CopyRowBytes({source, in.strides.dim}, {target, out.strides.dim}, in.head_dim, SizeOf(in.dtype));
}

// `row` = layer * kv_heads + head.
absl::Status GatherHead(Runner& runner, const GatherArgs& args, int64_t row, int worker) {
  const Head at = {row / args.keep->kv_heads, row % args.keep->kv_heads};
  Scratch& scratch = runner.ScratchOf(worker);
  scratch.Reset();
  float* x = scratch.Take<float>(PaddedDim(args.in[at.layer].head_dim));
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  const int32_t* kept = args.keep->Row(at.layer, at.head);
  const int64_t count = args.keep->Count(at.layer, at.head);
  const KvRef& in = args.in[at.layer];
  KVERN_CHECK(in.dtype == args.out[at.layer].dtype);
  KVERN_CHECK(count <= args.out[at.layer].tokens);
  for (int64_t slot = args.first_slot; slot < count; ++slot) {
    // A pass in place cannot be left half way: what it has overwritten is gone.
    if (!args.in_place && slot % kTileTokens == 0) KVERN_RETURN_IF_ERROR(runner.Check());
    KVERN_CHECK(!args.in_place || slot <= kept[slot]);
    if (slot + kRowsAhead < count) {
      PrefetchRow(in, in.Address(at.head, kept[slot + kRowsAhead]));
    }
    MoveRow(args, at, slot, x);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace kvern::cpu {
namespace {
HWY_EXPORT(GatherHead);
}  // namespace

absl::Status Gather(Runner& runner, const GatherArgs& args) {
  KVERN_CHECK((args.from == nullptr) == (args.to == nullptr));
  KVERN_CHECK(args.from == nullptr || args.from->bands == args.to->bands);
  KVERN_RETURN_IF_ERROR(runner.Check());
  return runner.ForEach(args.keep->layers * args.keep->kv_heads, [&](int64_t row, int worker) {
    return HWY_DYNAMIC_DISPATCH(GatherHead)(runner, args, row, worker);
  });
}

}  // namespace kvern::cpu

#endif  // HWY_ONCE
