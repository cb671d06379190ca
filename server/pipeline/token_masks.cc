// Rows of equal length and equal protection have equal masks, which is nearly always all of them.
#include "server/pipeline/token_masks.h"

#include <algorithm>

#include "server/pipeline/protection.h"

namespace kvern::pipeline {
namespace {

bool LengthsDiffer(const SequenceInput& input) {
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    for (int64_t head = 0; head < input.KvHeads(); ++head) {
      if (RowLength(input, layer, head) != input.Tokens()) return true;
    }
  }
  return false;
}

bool PlansDiffer(const CountPlan& counts) {
  const auto differ = [](const std::vector<int32_t>& values) {
    return std::adjacent_find(values.begin(), values.end(), std::not_equal_to<>()) != values.end();
  };
  return differ(counts.counts) || differ(counts.recent);
}

TokenMask::Rows RowsOf(bool differ) {
  return differ ? TokenMask::Rows::kOwn : TokenMask::Rows::kShared;
}

// Hard protection less what had to be trimmed, then the soft recent tokens that the plan granted.
TokenSpans ForcedSpans(const SequenceInput& input, const ResolvedPolicy& policy,
                       const CountPlan& counts, int64_t row) {
  const int64_t length = RowLength(input, row / input.KvHeads(), row % input.KvHeads());
  TokenSpans spans = TrimOldest(HardProtected(input, policy, length),
                                PinnedPrefix(input, policy, length), counts.counts[row]);
  spans.push_back({length - std::min<int64_t>(counts.recent[row], length), length});
  return spans;
}

}  // namespace

TokenMask::TokenMask(const SequenceInput& input, Rows rows)
    : rows_(rows), layers_(input.Layers()), kv_heads_(input.KvHeads()), tokens_(input.Tokens()) {
  // Without layers there is no first row whose plan a shared mask could show.
  if (layers_ * kv_heads_ == 0) rows_ = Rows::kOwn;
  bytes_.assign(StoredRows() * tokens_, 0);
}

MaskView TokenMask::View() const {
  MaskView view = DenseView(bytes_.data(), layers_, kv_heads_, tokens_);
  if (rows_ == Rows::kShared) view.stride[0] = view.stride[1] = 0;
  return view;
}

TokenMask AliveAfter(const SequenceInput& input, int64_t first) {
  TokenMask alive(input, RowsOf(LengthsDiffer(input)));
  for (int64_t row = 0; row < alive.StoredRows(); ++row) {
    const int64_t length = RowLength(input, row / input.KvHeads(), row % input.KvHeads());
    std::fill(alive.Row(row) + std::min(first, length), alive.Row(row) + length, 1);
  }
  return alive;
}

TokenMask AliveMask(const SequenceInput& input) { return AliveAfter(input, 0); }

TokenMasks MasksOf(const SequenceInput& input, const ResolvedPolicy& policy,
                   const CountPlan& counts) {
  const TokenMask::Rows rows = RowsOf(LengthsDiffer(input) || PlansDiffer(counts));
  TokenMasks masks{AliveMask(input), TokenMask(input, rows), TokenMask(input, rows)};
  for (int64_t row = 0; row < masks.forced.StoredRows(); ++row) {
    uint8_t* forced = masks.forced.Row(row);
    for (const TokenSpan& span : ForcedSpans(input, policy, counts, row)) {
      std::fill(forced + span.begin, forced + span.end, 1);
    }
    const int64_t length = RowLength(input, row / input.KvHeads(), row % input.KvHeads());
    for (int64_t token = 0; token < length; ++token) {
      masks.candidates.Row(row)[token] = forced[token] == 0 ? 1 : 0;
    }
  }
  return masks;
}

}  // namespace kvern::pipeline
