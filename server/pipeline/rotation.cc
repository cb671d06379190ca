// An f32 phase is off by hundredths at a position of a million: phases are f64, entries f32.
#include "server/pipeline/rotation.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "server/pipeline/rope_angles.h"

namespace kvern::pipeline {
namespace {

struct Range {
  int64_t first = 0;
  int64_t end = 0;
};

Range PositionsOf(std::span<const int32_t> slots) {
  if (slots.empty()) return {};
  const auto [least, most] = std::minmax_element(slots.begin(), slots.end());
  return {std::max(*least, 0), int64_t{std::max(*most, 0)} + 1};
}

// Whether a row for every position between is little more than a row for each that a slot holds: a
// device is given all rows.
bool Dense(const Range& range, size_t slots) {
  return range.end > 0 && range.end <= RopeAngles::kMaxPositions &&
         range.end - range.first <= 2 * static_cast<int64_t>(slots);
}

void ShareRows(const RopeSpec& rope, std::span<const int32_t> slots, RotationTable* table) {
  const Range range = PositionsOf(slots);
  const auto rows = rope.angles->First(rope.inv_freq, range.end);
  const size_t first = range.first * rope.inv_freq.size();
  const size_t count = (range.end - range.first) * rope.inv_freq.size();
  table->cosine = std::span(rows->cosine).subspan(first, count);
  table->sine = std::span(rows->sine).subspan(first, count);
  table->angles = rows;
  for (const int32_t position : slots) {
    table->row_of_slot.push_back(static_cast<int32_t>(std::max(position, 0) - range.first));
  }
}

void MakeRows(const RopeSpec& rope, std::span<const int32_t> slots, RotationTable* table) {
  const auto rows = std::make_shared<AngleRows>();
  absl::flat_hash_map<int32_t, int32_t> row_of_position;
  for (const int32_t slot_position : slots) {
    const int32_t position = std::max(slot_position, 0);
    const auto [found, is_new] =
        row_of_position.try_emplace(position, static_cast<int32_t>(row_of_position.size()));
    if (is_new) rows->Append(rope.inv_freq, position);
    table->row_of_slot.push_back(found->second);
  }
  table->cosine = rows->cosine;
  table->sine = rows->sine;
  table->angles = rows;
}

}  // namespace

RotationTable BuildRotation(const RopeSpec& rope, const SlotPositions& slots) {
  RotationTable table;
  table.layout = rope.layout;
  table.bands = rope.Bands();
  table.layer_stride = slots.kv_heads * slots.tokens;
  table.head_stride = slots.kv_heads == 0 ? 0 : slots.tokens;
  table.row_of_slot.reserve(slots.positions.size());
  if (rope.angles != nullptr && Dense(PositionsOf(slots.positions), slots.positions.size())) {
    ShareRows(rope, slots.positions, &table);
  } else {
    MakeRows(rope, slots.positions, &table);
  }
  return table;
}

RotationTable BuildRotation(const SequenceInput& sequence) {
  return BuildRotation(sequence.model->rope,
                       {.positions = sequence.positions,
                        .kv_heads = sequence.per_head_positions ? sequence.KvHeads() : 0,
                        .tokens = sequence.Tokens()});
}

RotationTable BuildConsecutiveRotation(const RopeSpec& rope, int64_t tokens) {
  std::vector<int32_t> positions(tokens);
  std::iota(positions.begin(), positions.end(), 0);
  return BuildRotation(rope, {.positions = positions, .kv_heads = 0, .tokens = tokens});
}

std::shared_ptr<const RotationTable> RotationTables::Of(const SequenceInput& sequence) {
  for (const OfSequence& known : of_sequences_) {
    const SequenceInput& other = *known.sequence;
    if (other.model == sequence.model && other.per_head_positions == sequence.per_head_positions &&
        other.Tokens() == sequence.Tokens() && other.positions == sequence.positions) {
      return known.table;
    }
  }
  of_sequences_.push_back(
      {&sequence, std::make_shared<const RotationTable>(BuildRotation(sequence))});
  return of_sequences_.back().table;
}

std::shared_ptr<const RotationTable> RotationTables::OfConsecutive(const RopeSpec& rope,
                                                                   int64_t tokens) {
  for (const OfTokens& known : consecutive_) {
    if (known.tokens == tokens) return known.table;
  }
  consecutive_.push_back(
      {tokens, std::make_shared<const RotationTable>(BuildConsecutiveRotation(rope, tokens))});
  return consecutive_.back().table;
}

bool RopeKnown(const SequenceInput& sequence) {
  return sequence.model->rope.Bands() > 0 &&
         (sequence.Tokens() == 0 || !sequence.positions.empty());
}

}  // namespace kvern::pipeline
