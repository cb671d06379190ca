// The arithmetic a pipeline stage may use, and all that differs between processors.
//
// `kernels/ref` is the executable specification: scalar, in the order that ruling 6 fixes. Every
// other backend gives the same bits, on every instruction set and thread count:
//   * a sum over head_dim runs in 16 virtual f32 lanes (lane = index mod 16), each by fma in index
//     order, then the tree 8, 4, 2, 1;
//   * a sum over tokens runs in tiles of 256 tokens; inside a tile in 16 virtual f64 lanes
//     (lane = token mod 16) and the same tree; tile sums are added in token order;
//   * exp, log, sin, cos and 1/sqrt come from kernels/base.
//
// For every op: views live on this backend's device; outputs do not alias inputs unless the op says
// so; empty shapes are legal; work is complete when the call returns. One call at a time per
// object. Errors of every op: Cancelled or DeadlineExceeded when the bound StopCheck fires (outputs
// are then unspecified, inputs untouched); ResourceExhausted when scratch does not fit; Internal
// for a device fault. Shapes were checked by the planner: a wrong one is our bug and ends in
// KVERN_CHECK.
#ifndef KVERN_KERNELS_BACKEND_H_
#define KVERN_KERNELS_BACKEND_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/base/dtype.h"
#include "kernels/base/keep_list.h"
#include "kernels/base/kv_ref.h"
#include "kernels/base/packed_layout.h"
#include "kernels/base/rotation.h"
#include "kernels/base/tensor_view.h"

namespace kvern {

// Keys (or values) of a sequence: one view per layer, all of one dtype, kv_heads and head_dim.
using LayerRefs = std::span<const KvRef>;

// Asked between tiles of work (at most 256 tokens of one head apart).
class StopCheck {
 public:
  virtual ~StopCheck() = default;
  // Ok while the work is still wanted; Cancelled or DeadlineExceeded otherwise. Thread-safe.
  virtual absl::Status Check() const = 0;
};

enum class GroupReduce : uint8_t { kMean, kMax };  // over the query heads of one kv_head
enum class PoolKind : uint8_t { kAverage, kMax };
enum class BlendKind : uint8_t { kMax, kSum };
enum class TieRule : uint8_t { kRecent, kOldest };  // which position wins between equal scores
enum class ScoreScale : uint8_t { kAsIs, kMinMax };

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
};

// Logits of expected attention: <linear, k> + sum_j <factor_j, k>^2 + sum_i diagonal_i k_i^2, or
// with `full` <linear, k> + sum_i k_i <factor_i, k> (then rank = head_dim, diagonal empty).
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
};

struct KeyDiffArgs {
  LayerRefs keys;
  const RotationTable* unrotate = nullptr;  // null: keys as they are
  MaskView alive;                           // the mean runs over these
};

// score = mass / (per_visible ? visible : 1) * (value_norm ? |v| : 1), or the log of it.
struct AttentionMassArgs {
  TensorView<const float, 3> mass;      // [layers, kv_heads, tokens]
  TensorView<const double, 3> visible;  // [layers, kv_heads, tokens] queries that saw the token
  LayerRefs values;                     // read only with value_norm
  bool per_visible = true;
  bool value_norm = false;
  bool log = false;
};

struct TopKArgs {
  ConstScoreView scores;  // NaN ranks last
  MaskView candidates;    // others are never picked here
  MaskView forced;        // always kept; disjoint from candidates
  TieRule tie = TieRule::kRecent;
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
};

struct MeanKeyArgs {
  LayerRefs keys;
  const RotationTable* rotation = nullptr;
  MaskView counted;  // alive minus sinks (ruling 12)
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
};
struct EncodeCounts {
  int64_t nonfinite = 0;     // inputs that were NaN (coded 0), infinite or beyond 65504 (clamped)
  double squared_error = 0;  // sum over coded rows of |x - decode(encode(x))|^2
  double squared_norm = 0;   // sum over coded rows of |x|^2
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

class Backend {
 public:
  virtual ~Backend() = default;
  virtual absl::string_view Name() const = 0;            // "ref", "cpu"
  virtual absl::string_view InstructionSet() const = 0;  // "scalar", "avx2", "avx3", "neon"

  // The check that ops of the next calls ask; null for none. Not owned.
  virtual void Bind(const StopCheck* stop) = 0;

  // norms = |row|_2.
  virtual absl::Status RowNorms(LayerRefs rows, ScoreView norms) = 0;
  virtual absl::Status TriAttention(const TriAttentionArgs& args, ScoreView scores) = 0;
  virtual absl::Status ExpectedAttention(const ExpectedAttentionArgs& args, ScoreView scores) = 0;
  virtual absl::Status WindowAttention(const WindowAttentionArgs& args, ScoreView scores) = 0;
  // scores = -cos(key, mean unit key), keys un-rotated first where a table is given.
  virtual absl::Status KeyDiff(const KeyDiffArgs& args, ScoreView scores) = 0;
  virtual absl::Status AttentionMass(const AttentionMassArgs& args, ScoreView scores) = 0;
  // scores = (scores - mean) / std per (layer, kv_head), mean and biased std over the finite
  // candidates; 0 where std < 1e-6. In place.
  virtual absl::Status ZScore(MaskView candidates, ScoreView scores) = 0;
  // scores = factor * scores, in place.
  virtual absl::Status Scale(float factor, ScoreView scores) = 0;
  // accumulated = max or sum of both, NaN if either is. In place.
  virtual absl::Status Blend(BlendKind kind, ConstScoreView scores, ScoreView accumulated) = 0;
  // Replaces the rows of each group by their mean (f64, in row order) or maximum. In place.
  virtual absl::Status ShareRows(const std::vector<std::vector<int64_t>>& groups,
                                 GroupReduce reduce, ScoreView scores) = 0;

  // Fills keep (rows sized by the caller): the forced tokens and the best candidates, ascending.
  virtual absl::Status TopK(const TopKArgs& args, KeepList* keep) = 0;
  virtual absl::Status Diverse(const DiverseArgs& args, KeepList* keep) = 0;

  // mean[layer, head] = mean un-rotated key, f64-accumulated, rounded to f16.
  virtual absl::Status MeanKey(const MeanKeyArgs& args, TensorView<Float16, 3> mean) = 0;
  virtual absl::Status Encode(const EncodeArgs& args, EncodeCounts* counts) = 0;
  virtual absl::Status Decode(const DecodeArgs& args) = 0;
  virtual absl::Status Gather(const GatherArgs& args) = 0;
};

}  // namespace kvern

#endif  // KVERN_KERNELS_BACKEND_H_
