// One sequence as the pipeline sees it: views and facts, no owner, no request.
#ifndef KVERN_SERVER_PIPELINE_SEQUENCE_INPUT_H_
#define KVERN_SERVER_PIPELINE_SEQUENCE_INPUT_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/reuse.h"
#include "server/pipeline/model.h"

namespace kvern::pipeline {

// Side tensors after the edge: validated shapes, f32, finite or not.
struct SideTensors {
  std::vector<float> q_window;  // [layers, q_heads, window, head_dim]; empty: absent
  int64_t window = 0;
  std::vector<float> attention_mass;   // [layers, kv_heads, tokens]; empty: absent
  std::vector<float> external_scores;  // [layers, kv_heads, tokens]; empty: absent
};

// Borrowed: everything it points to outlives the call.
struct SequenceInput {
  const ModelSpec* model = nullptr;
  const Calibrations* calibrations = nullptr;  // never null; members may be
  ScratchVector<int32_t> layer_indices;        // [layers] in the model, ascending
  ScratchVector<KvRef> keys;                   // [layers]
  ScratchVector<KvRef> values;                 // [layers]
  // Rotary position of each slot: [tokens] shared, or [layers, kv_heads, tokens] with per_head.
  ScratchVector<int32_t> positions;
  bool per_head_positions = false;
  int64_t logical_tokens = 0;
  int64_t readonly_prefix_tokens = 0;                           // protected
  ScratchVector<std::pair<int64_t, int64_t>> protected_ranges;  // half-open, physical
  const SideTensors* side = nullptr;                            // never null

  int64_t Layers() const { return static_cast<int64_t>(keys.size()); }
  int64_t KvHeads() const { return model->kv_heads; }
  int64_t Tokens() const { return keys.empty() ? 0 : keys[0].tokens; }
  int32_t Position(int64_t layer, int64_t head, int64_t token) const {
    return positions[per_head_positions ? (layer * KvHeads() + head) * Tokens() + token : token];
  }
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SEQUENCE_INPUT_H_
