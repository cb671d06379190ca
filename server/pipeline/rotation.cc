// An f32 phase is off by hundredths at a position of a million: phases are f64, entries f32.
#include "server/pipeline/rotation.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "kernels/base/math.h"

namespace kvern::pipeline {
namespace {

void AppendRow(const RopeSpec& rope, int32_t position, RotationTable* table) {
  for (const float frequency : rope.inv_freq) {
    double sine, cosine;
    SinCos(static_cast<double>(position) * frequency, &sine, &cosine);
    table->cosine.push_back(static_cast<float>(cosine));
    table->sine.push_back(static_cast<float>(sine));
  }
}

}  // namespace

RotationTable BuildRotation(const RopeSpec& rope, const SlotPositions& slots) {
  RotationTable table;
  table.layout = rope.layout;
  table.bands = rope.Bands();
  table.layer_stride = slots.kv_heads * slots.tokens;
  table.head_stride = slots.kv_heads == 0 ? 0 : slots.tokens;
  table.row_of_slot.reserve(slots.positions.size());
  absl::flat_hash_map<int32_t, int32_t> row_of_position;
  for (const int32_t slot_position : slots.positions) {
    const int32_t position = std::max(slot_position, 0);
    const auto [found, is_new] =
        row_of_position.try_emplace(position, static_cast<int32_t>(row_of_position.size()));
    if (is_new) AppendRow(rope, position, &table);
    table.row_of_slot.push_back(found->second);
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
