// What each op of a backend takes: views it reads, switches, and where its answer goes.
#ifndef KVERN_KERNELS_OP_ARGS_H_
#define KVERN_KERNELS_OP_ARGS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/keep_list.h"
#include "kernels/base/kv_ref.h"
#include "kernels/base/packed_layout.h"
#include "kernels/base/rotation.h"
#include "kernels/base/tensor_view.h"

namespace kvern {

// Keys (or values) of a sequence: one view per layer, all of one dtype, kv_heads and head_dim.
using LayerRefs = std::span<const KvRef>;

enum class GroupReduce : uint8_t { kMean, kMax };  // over the query heads of one kv_head
enum class PoolKind : uint8_t { kAverage, kMax };
enum class BlendKind : uint8_t { kMax, kSum };
enum class TieRule : uint8_t { kRecent, kOldest };  // which position wins between equal scores
enum class ScoreScale : uint8_t { kAsIs, kMinMax };

struct RowNormsArgs {
  LayerRefs rows;
  ScoreView norms;  // |row|_2
};

// TriAttention (retention.md 3.2), already rotated to the round's position by the caller in f64.
// Per query head and offset column: score = <u, key> + <w, |key band|>.
struct TriAttentionArgs {
  LayerRefs keys;
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 0;  // rotated dims / 2; other dims do not count
  int32_t q_heads = 0;
  int32_t columns = 1;           // 1: mean over offsets, folded into u; 17: max over columns
  TensorView<const float, 4> u;  // [layers, q_heads, columns, 2 * bands] key layout
  TensorView<const float, 3> w;  // [layers, q_heads, bands]
  MaskView candidates;           // z-scores run over these
  bool zscore = true;            // per query head, before the group is reduced
  GroupReduce group = GroupReduce::kMax;
  ScoreView scores = {};
};

// Logits of expected attention: <linear, k> + sum_j <factor_j, k>^2 + sum_i diagonal_i k_i^2, or
// with `full` <linear, k> + sum_i k_i <factor_i, k> (then rank = head_dim, diagonal empty). The
// first form takes its dots in f32 on centred keys, whose logits differ by a constant that the
// softmax does not see; the full form is in f64. A moment outside f32 leaves no score.
struct ExpectedAttentionArgs {
  LayerRefs keys;
  LayerRefs values;  // read only with value_norm
  int32_t q_heads = 0;
  int32_t rank = 0;
  bool full = false;
  TensorView<const double, 3> linear;    // [layers, q_heads, head_dim]
  TensorView<const double, 4> factors;   // [layers, q_heads, rank, head_dim]
  TensorView<const double, 3> diagonal;  // [layers, q_heads, head_dim]
  MaskView counted;                      // the softmax runs over these; others score NaN
  float epsilon = 0.0f;
  bool value_norm = true;
  bool log = false;  // needs epsilon == 0 (ruling 7)
  ScoreView scores = {};
};

// SnapKV: softmax attention of the window's queries, averaged over them, pooled over tokens, then
// reduced over the group. The last `window` tokens get no score (NaN).
struct WindowAttentionArgs {
  LayerRefs keys;
  TensorView<const float, 4> queries;  // [layers, q_heads, window, head_dim], after RoPE, positions
                                       // of the last `window` tokens
  PoolKind pool = PoolKind::kAverage;
  int32_t pool_width = 5;  // odd
  GroupReduce group = GroupReduce::kMean;
  ScoreView scores = {};
};

// scores = -cos(key, mean unit key), keys un-rotated first where a table is given.
struct KeyDiffArgs {
  LayerRefs keys;
  const RotationTable* unrotate = nullptr;  // null: keys as they are
  MaskView alive;                           // the mean runs over these
  ScoreView scores = {};
};

// score = mass / (per_visible ? visible : 1) * (value_norm ? |v| : 1), or the log of it.
struct AttentionMassArgs {
  TensorView<const float, 3> mass;      // [layers, kv_heads, tokens]
  TensorView<const double, 3> visible;  // [layers, kv_heads, tokens] queries that saw the token
  LayerRefs values;                     // read only with value_norm
  bool per_visible = true;
  bool value_norm = false;
  bool log = false;
  ScoreView scores = {};
};

// scores = (scores - mean) / std per (layer, kv_head), mean and biased std over the finite
// candidates; 0 where std < 1e-6. In place.
struct ZScoreArgs {
  MaskView candidates;
  ScoreView scores = {};
};

// accumulated = max or sum of both, NaN if either is. In place.
struct BlendArgs {
  BlendKind kind = BlendKind::kMax;
  ConstScoreView scores;
  ScoreView accumulated;
};

// Replaces the rows of each group by their mean (f64, in row order) or maximum. In place.
struct ShareRowsArgs {
  const std::vector<std::vector<int64_t>>* groups = nullptr;  // rows: layer * kv_heads + head
  GroupReduce reduce = GroupReduce::kMean;
  ScoreView scores = {};
};

// NaN for whatever is no candidate; counts the candidates that were NaN before. In place.
struct HideScoresArgs {
  MaskView candidates;
  ScoreView scores = {};
  int64_t* nan_candidates = nullptr;
};

// Fills keep (rows sized by the caller): the forced tokens and the best candidates, ascending.
struct TopKArgs {
  ConstScoreView scores;  // NaN ranks last
  MaskView candidates;    // others are never picked here
  MaskView forced;        // always kept; disjoint from candidates
  TieRule tie = TieRule::kRecent;
  KeepList* keep = nullptr;
};

// alpha (retention.md 9.1): greedy argmax of score - lambda * max(0, max cos to the picks so far).
// Rows of one group share one answer: cos is then the mean over the group's rows, and scores,
// masks and counts are equal in all of them.
struct DiverseArgs {
  ConstScoreView scores;
  MaskView candidates;
  MaskView forced;
  LayerRefs values;
  float lambda = 0.5f;
  ScoreScale scale = ScoreScale::kAsIs;
  TieRule tie = TieRule::kRecent;
  std::vector<std::vector<int64_t>> groups;  // rows (layer * kv_heads + head); empty: each alone
  KeepList* keep = nullptr;
};

// mean[layer, head] = mean un-rotated key, f64-accumulated, rounded to f16.
struct MeanKeyArgs {
  LayerRefs keys;
  const RotationTable* rotation = nullptr;
  MaskView counted;                  // alive minus sinks (ruling 12)
  TensorView<Float16, 3> mean = {};  // [layers, kv_heads, head_dim], host memory
};

struct EncodeCounts {
  int64_t nonfinite = 0;     // inputs that were NaN (coded 0), infinite or beyond 65504 (clamped)
  double squared_error = 0;  // sum over coded rows of f32 |x - decode(encode(x))|^2
  double squared_norm = 0;   // sum over coded rows of f32 |x|^2
};

// Encodes the kept rows of one role. Rows of `table` name codec, slots and offsets (made by the
// planner); `packed` has room for all of them and arrives zeroed.
struct EncodeArgs {
  LayerRefs rows;  // keys or values
  const KeepList* keep = nullptr;
  std::span<const PackedRow> table;         // only rows of this role
  TensorView<const Float16, 3> mean_key;    // [layers, kv_heads, head_dim]; rows with kFlagRopeMean
  const RotationTable* rotation = nullptr;  // positions of the source slots
  std::span<std::byte> packed;
  EncodeCounts* counts = nullptr;
};

struct DecodeArgs {
  std::span<const std::byte> packed;
  std::span<const PackedRow> table;  // only rows of this role
  TensorView<const Float16, 3> mean_key;
  const RotationTable* rotation = nullptr;  // positions of the packed slots
  std::span<const KvRef> rows;              // one per layer, written: token = slot
};

// Copies kept rows: out(layer, head, slot) = in(layer, head, keep[slot]), and re-rotates keys where
// tables are given. `in_place`: out is the same memory and slot <= keep[slot]; a forward pass.
struct GatherArgs {
  LayerRefs in;
  const KeepList* keep = nullptr;
  std::span<const KvRef> out;           // one per layer, written
  int64_t first_slot = 0;               // slots below are already in place
  const RotationTable* from = nullptr;  // null: bytes move as they are
  const RotationTable* to = nullptr;    // rows of the *output* slots
  bool in_place = false;
};

}  // namespace kvern

#endif  // KVERN_KERNELS_OP_ARGS_H_
