// A worker moves the kept rows of heads that lie together, a turn of tokens of each at a time, so
// that pages are met once. Memory answers what was asked for some rows ago.
#include "kernels/cpu/gather.h"

#include <algorithm>
#include <cstdint>

#include "kernels/base/status_macros.h"
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gather.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target, the baseline last
// After the list of targets.
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/rotation-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace {

constexpr int64_t kLineBytes = 64;

// How rows reach their slots.
enum class RowWrite : uint8_t {
  kCached,   // whoever is next finds them in the cache
  kStreamed  // past the cache: nobody reads what is overwritten; whole lines only
};

// Rows of this much altogether have left a core's own cache before anybody reads them; fewer are
// found there, and in place so are the rows that they replace.
constexpr int64_t kStreamBytes = 4 << 20;

RowWrite WriteOf(const GatherArgs& args, int64_t layer) {
  const KvRef& in = args.in[layer];
  const KvRef& out = args.out[layer];
  const int64_t row_bytes = out.head_dim * SizeOf(out.dtype);
  const int64_t all_bytes = static_cast<int64_t>(args.keep->tokens.size()) * row_bytes;
  const bool as_they_are =
      in.HasContiguousRows() && out.HasContiguousRows() && args.from == nullptr;
  const bool whole_lines = (reinterpret_cast<uintptr_t>(out.base) | row_bytes | out.strides.block |
                            out.strides.head | out.strides.token) %
                               kLineBytes ==
                           0;
  return as_they_are && whole_lines && all_bytes >= kStreamBytes ? RowWrite::kStreamed
                                                                 : RowWrite::kCached;
}

// Kept rows are found this many before they move: what memory takes to answer, in rows of work.
constexpr int64_t kFoundAhead = 16;

// Where kept rows lie, and beside each the row to ask memory for meanwhile.
struct FoundRows {
  std::byte* const* row;  // [rows + kFoundAhead]
  int64_t row_bytes;
};

// rows [count] one after the other to `to` on, past the cache.
HWY_NOINLINE void StreamRows(const FoundRows& found, int64_t count, std::byte* to, int64_t stride) {
  const hn::CappedTag<uint8_t, kLineBytes> d;
  constexpr int64_t kStep = hn::MaxLanes(d);
  const int64_t row_bytes = found.row_bytes;
  for (int64_t r = 0; r < count; ++r, to += stride) {
    const std::byte* from = found.row[r];
    const std::byte* soon = found.row[r + kFoundAhead];
    for (int64_t line = 0; line < row_bytes; line += kLineBytes) {
      hwy::Prefetch(soon + line);
      for (int64_t at = line; at < line + kLineBytes; at += kStep) {
        hn::Stream(hn::LoadU(d, reinterpret_cast<const uint8_t*>(from + at)), d,
                   reinterpret_cast<uint8_t*>(to + at));
      }
    }
  }
}

// The heads of one run.
class Mover {
 public:
  Mover(const HeadRun& run, const GatherArgs& args)
      : run_(run),
        args_(args),
        in_(args.in[run.layer]),
        out_(args.out[run.layer]),
        write_(WriteOf(args, run.layer)),
        x_(run.scratch.Take<float>(PaddedDim(in_.head_dim))),
        slots_(run.scratch.Take<int64_t>(run.count)),
        rows_(run.scratch.Take<std::byte*>(kTileTokens + kFoundAhead)) {}

  // Once scratch.Taken() is ok. Errors: those of the check at each turn.
  absl::Status Run() {
    KVERN_CHECK(in_.dtype == out_.dtype);
    int64_t end = 0;  // of the tokens that are kept
    for (int64_t i = 0; i < run_.count; ++i) {
      const int64_t count = args_.keep->Count(run_.layer, run_.first + i);
      KVERN_CHECK(count <= out_.tokens);
      slots_[i] = FirstToMove(run_.first + i);
      if (count == 0) continue;
      end = std::max<int64_t>(end, args_.keep->Row(run_.layer, run_.first + i)[count - 1] + 1);
    }
    absl::Status status;
    for (int64_t turn = 0; turn < end && status.ok(); turn += kTileTokens) {
      for (int64_t i = 0; i < run_.count && status.ok(); ++i) {
        // A pass in place cannot be left half way: what it has overwritten is gone.
        if (!args_.in_place) status = run_.runner.Check();
        if (status.ok()) slots_[i] = MoveTurn(run_.first + i, slots_[i], turn + kTileTokens);
      }
    }
    // Whoever is told that this run is over may read what was moved.
    if (write_ == RowWrite::kStreamed) hwy::FlushStream();
    return status;
  }

 private:
  // In place the first tokens may all be kept: bytes are where they belong.
  int64_t FirstToMove(int64_t head) const {
    if (!args_.in_place || args_.from != nullptr) return args_.first_slot;
    const int32_t* kept = args_.keep->Row(run_.layer, head);
    int64_t slot = args_.first_slot;
    while (slot < args_.keep->Count(run_.layer, head) && kept[slot] == slot) ++slot;
    return slot;
  }

  // Moves the head's kept tokens below `end`, from `slot` on; returns the next slot.
  int64_t MoveTurn(int64_t head, int64_t slot, int64_t end) {
    const int32_t* kept = args_.keep->Row(run_.layer, head);
    const int64_t count = args_.keep->Count(run_.layer, head);
    int64_t last = slot;
    while (last < count && kept[last] < end) {
      KVERN_CHECK(!args_.in_place || last <= kept[last]);
      ++last;
    }
    if (last == slot) return slot;
    KVERN_CHECK(last - slot <= kTileTokens);
    const int64_t found = std::min(count, last + kFoundAhead);
    for (int64_t at = slot; at < found; ++at) rows_[at - slot] = in_.Address(head, kept[at]);
    std::fill(rows_ + found - slot, rows_ + last + kFoundAhead - slot, rows_[found - slot - 1]);
    for (int64_t at = slot; at < last;) {
      // Rows of one block of the output are evenly spaced.
      const int64_t in_block = out_.block_tokens - at % out_.block_tokens;
      const int64_t rows = std::min(last - at, in_block);
      MoveRows(head, at, rows_ + at - slot, rows);
      at += rows;
    }
    return last;
  }

  // Rows to slots [slot, slot + count) of one block.
  void MoveRows(int64_t head, int64_t slot, std::byte* const* rows, int64_t count) {
    std::byte* to = out_.Address(head, slot);
    const int64_t row_bytes = in_.head_dim * SizeOf(in_.dtype);
    if (write_ == RowWrite::kStreamed) {
      StreamRows({rows, row_bytes}, count, to, out_.strides.token);
      return;
    }
    for (int64_t r = 0; r < count; ++r, to += out_.strides.token) {
      PrefetchRow(in_, rows[r + kFoundAhead]);
      if (args_.from != nullptr && TurnInto(head, slot + r, rows[r], to)) continue;
      if (rows[r] == to) continue;
      CopyRowBytes({rows[r], in_.strides.dim}, {to, out_.strides.dim}, in_.head_dim,
                   SizeOf(in_.dtype));
    }
  }

  // Moves the row turned; false where its angles stay: then bytes move as they are.
  bool TurnInto(int64_t head, int64_t slot, const std::byte* source, std::byte* target) {
    const int32_t token = args_.keep->Row(run_.layer, head)[slot];
    const RotationRow from = RowOf(*args_.from, args_.from->Row(run_.layer, head, token));
    const RotationRow to = RowOf(*args_.to, args_.to->Row(run_.layer, head, slot));
    if (SameAngles(from, to)) return false;
    LoadRow(in_, source, x_);
    TurnRow<Turn::kUnrotate>(from, x_);
    TurnRow<Turn::kRotate>(to, x_);
    StoreRow(out_, x_, target);
    return true;
  }

  const HeadRun& run_;
  const GatherArgs& args_;
  const KvRef& in_;
  const KvRef& out_;
  const RowWrite write_;
  float* const x_;
  int64_t* const slots_;    // [run.count] the next of each head
  std::byte** const rows_;  // [kTileTokens + kFoundAhead] of one turn
};

absl::Status GatherRun(const HeadRun& run, const GatherArgs& args) {
  Mover mover(run, args);
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  return mover.Run();
}

}  // namespace
}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace kvern::cpu {
namespace {
HWY_EXPORT(GatherRun);
}  // namespace

absl::Status Gather(Runner& runner, const GatherArgs& args) {
  KVERN_CHECK((args.from == nullptr) == (args.to == nullptr));
  KVERN_CHECK(args.from == nullptr || args.from->bands == args.to->bands);
  KVERN_RETURN_IF_ERROR(runner.Check());
  const int64_t kv_heads = args.keep->kv_heads;
  const int64_t shape[3] = {args.keep->layers, kv_heads, 0};
  return ForEachHeadRun(runner, shape, NearHeads(args.in, kv_heads), [&](const HeadRun& run) {
    return HWY_DYNAMIC_DISPATCH(GatherRun)(run, args);
  });
}

}  // namespace kvern::cpu

#endif  // HWY_ONCE
