// Rotation tables of a sequence's positions.
#ifndef KVERN_SERVER_PIPELINE_ROTATION_H_
#define KVERN_SERVER_PIPELINE_ROTATION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/reuse.h"
#include "kernels/base/rotation.h"
#include "server/pipeline/model.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::pipeline {

// One row of slots [tokens], shared by all layers and heads, or one per (layer, kv_head).
struct SlotPositions {
  std::span<const int32_t> positions;  // [tokens] or [layers, kv_heads, tokens]
  int64_t kv_heads = 0;                // 0: one row shared by all
  int64_t tokens = 0;
};

// cos and sin of position * inv_freq: f64 phases, rounded once to f32; slots at the same position
// share a row. Negative positions mark slots that hold nothing and get the row of position 0.
//
// The table is a pure rotation. A cached key is sigma * R k (sigma = attention_scaling), so turning
// it back gives sigma * k: the cosine of KeyDiff does not see sigma, a mean key subtracted from and
// added to such keys carries it on both sides, and a re-rotated key must keep it.
RotationTable BuildRotation(const RopeSpec& rope, const SlotPositions& slots);

// Of the positions that the sequence's slots hold.
RotationTable BuildRotation(const SequenceInput& sequence);

// Of slots renumbered to 0..tokens-1.
RotationTable BuildConsecutiveRotation(const RopeSpec& rope, int64_t tokens);

// Tables of a cohort: sequences of one model whose slots hold the same positions share one.
class RotationTables {
 public:
  std::shared_ptr<const RotationTable> Of(const SequenceInput& sequence);
  std::shared_ptr<const RotationTable> OfConsecutive(const RopeSpec& rope, int64_t tokens);

 private:
  struct OfSequence {
    const SequenceInput* sequence;  // the first that had these positions; outlives this
    std::shared_ptr<const RotationTable> table;
  };
  struct OfTokens {
    int64_t tokens;
    std::shared_ptr<const RotationTable> table;
  };
  ScratchVector<OfSequence> of_sequences_;
  ScratchVector<OfTokens> consecutive_;
};

// Whether tables can be built: inverse frequencies and positions are there.
bool RopeKnown(const SequenceInput& sequence);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_ROTATION_H_
