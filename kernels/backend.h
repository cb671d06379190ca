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
// An op takes a cohort: the same work for many sequences, which a device does in one launch. The
// sequences differ in tokens, layers and memory; dtype, head_dim, head counts and the switches that
// choose the arithmetic (everything but views, tables and masks) are the same in all of them.
//
// For every op: KV rows and scores may lie in memory of Allocate, of Import, or of the host (a
// device backend copies what it cannot reach); masks, tables and KeepLists are host memory; outputs
// do not alias inputs unless the op says so; empty shapes are legal. What goes to host memory is
// complete when the call returns, the rest in call order and after Finish. One op at a time per
// object. Errors of every op: Cancelled or DeadlineExceeded when the bound StopCheck fires (outputs
// are then unspecified, inputs untouched); ResourceExhausted when scratch does not fit; Internal
// for a device fault. Shapes were checked by the planner: a wrong one is our bug and ends in
// KVERN_CHECK.
#ifndef KVERN_KERNELS_BACKEND_H_
#define KVERN_KERNELS_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/device_memory.h"
#include "kernels/op_args.h"

namespace kvern {

// Asked between tiles of work (at most 256 tokens of one head apart).
class StopCheck {
 public:
  virtual ~StopCheck() = default;
  // Ok while the work is still wanted; Cancelled or DeadlineExceeded otherwise. Thread-safe.
  virtual absl::Status Check() const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual absl::string_view Name() const = 0;  // "ref", "cpu", "cuda"
  virtual absl::string_view InstructionSet()
      const = 0;  // "scalar", "avx2", "avx3", "neon", "sm_90"

  // The check that ops of the next calls ask; null for none. Not owned.
  virtual void Bind(const StopCheck* stop) = 0;

  virtual absl::Status RowNorms(std::span<const RowNormsArgs> cohort) = 0;
  virtual absl::Status TriAttention(std::span<const TriAttentionArgs> cohort) = 0;
  virtual absl::Status ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) = 0;
  virtual absl::Status WindowAttention(std::span<const WindowAttentionArgs> cohort) = 0;
  virtual absl::Status KeyDiff(std::span<const KeyDiffArgs> cohort) = 0;
  virtual absl::Status AttentionMass(std::span<const AttentionMassArgs> cohort) = 0;
  virtual absl::Status ZScore(std::span<const ZScoreArgs> cohort) = 0;
  // scores = factor * scores, in place.
  virtual absl::Status Scale(float factor, std::span<const ScoreView> cohort) = 0;
  virtual absl::Status Blend(std::span<const BlendArgs> cohort) = 0;
  virtual absl::Status ShareRows(std::span<const ShareRowsArgs> cohort) = 0;
  virtual absl::Status HideScores(std::span<const HideScoresArgs> cohort) = 0;
  virtual absl::Status TopK(std::span<const TopKArgs> cohort) = 0;
  virtual absl::Status Diverse(std::span<const DiverseArgs> cohort) = 0;
  virtual absl::Status MeanKey(std::span<const MeanKeyArgs> cohort) = 0;
  // Codecs may differ within a cohort: keys and values are coded in one.
  virtual absl::Status Encode(std::span<const EncodeArgs> cohort) = 0;
  virtual absl::Status Decode(std::span<const DecodeArgs> cohort) = 0;
  virtual absl::Status Gather(std::span<const GatherArgs> cohort) = 0;

  // Whether one op over a cohort costs less than an op per sequence.
  virtual bool Batches() const = 0;
  // All work so far is complete, or its error.
  virtual absl::Status Finish() = 0;
  // Finish, and the microseconds that the work since the last Lap took (a device: by its clock).
  virtual absl::StatusOr<int64_t> Lap() = 0;

  // Memory of the device, not zeroed. Errors: ResourceExhausted.
  virtual absl::StatusOr<Buffer> Allocate(int64_t bytes) = 0;
  // Thread-safe; after the ops before them; complete when they return.
  virtual absl::Status CopyIn(std::span<const std::byte> host, std::byte* device) = 0;
  virtual absl::Status CopyOut(const std::byte* device, std::span<std::byte> host) = 0;
  virtual absl::Status Zero(std::byte* device, int64_t bytes) = 0;
  // The rows themselves where ops reach them in place, else a dense copy on the device.
  virtual absl::StatusOr<StagedRows> Stage(LayerRefs rows) = 0;
  // Thread-safe. Errors: FailedPrecondition/NO_DEVICE on a host backend; InvalidArgument for
  // another device, a handle that does not open, or a range outside its allocation.
  virtual absl::StatusOr<std::unique_ptr<DeviceMapping>> Import(const DeviceHandle& handle) = 0;

  // Thread-safe. Not ok for ever after a device fault that no retry cures: what ran then is lost.
  virtual absl::Status Health() const = 0;
  virtual std::optional<DeviceFacts> Device() const = 0;  // none: the host. Thread-safe.

  // Cohorts of one.
  absl::Status RowNorms(LayerRefs rows, ScoreView norms) {
    const RowNormsArgs args{rows, norms};
    return RowNorms(std::span(&args, 1));
  }
  absl::Status TriAttention(TriAttentionArgs args, ScoreView scores) {
    args.scores = scores;
    return TriAttention(std::span<const TriAttentionArgs>(&args, 1));
  }
  absl::Status ExpectedAttention(ExpectedAttentionArgs args, ScoreView scores) {
    args.scores = scores;
    return ExpectedAttention(std::span<const ExpectedAttentionArgs>(&args, 1));
  }
  absl::Status WindowAttention(WindowAttentionArgs args, ScoreView scores) {
    args.scores = scores;
    return WindowAttention(std::span<const WindowAttentionArgs>(&args, 1));
  }
  absl::Status KeyDiff(KeyDiffArgs args, ScoreView scores) {
    args.scores = scores;
    return KeyDiff(std::span<const KeyDiffArgs>(&args, 1));
  }
  absl::Status AttentionMass(AttentionMassArgs args, ScoreView scores) {
    args.scores = scores;
    return AttentionMass(std::span<const AttentionMassArgs>(&args, 1));
  }
  absl::Status ZScore(MaskView candidates, ScoreView scores) {
    const ZScoreArgs args{candidates, scores};
    return ZScore(std::span(&args, 1));
  }
  absl::Status Scale(float factor, ScoreView scores) {
    return Scale(factor, std::span<const ScoreView>(&scores, 1));
  }
  absl::Status Blend(BlendKind kind, ConstScoreView scores, ScoreView accumulated) {
    const BlendArgs args{kind, scores, accumulated};
    return Blend(std::span(&args, 1));
  }
  absl::Status ShareRows(const std::vector<std::vector<int64_t>>& groups, GroupReduce reduce,
                         ScoreView scores) {
    const ShareRowsArgs args{&groups, reduce, scores};
    return ShareRows(std::span(&args, 1));
  }
  absl::Status TopK(TopKArgs args, KeepList* keep) {
    args.keep = keep;
    return TopK(std::span<const TopKArgs>(&args, 1));
  }
  absl::Status Diverse(DiverseArgs args, KeepList* keep) {
    args.keep = keep;
    return Diverse(std::span<const DiverseArgs>(&args, 1));
  }
  absl::Status MeanKey(MeanKeyArgs args, TensorView<Float16, 3> mean) {
    args.mean = mean;
    return MeanKey(std::span<const MeanKeyArgs>(&args, 1));
  }
  absl::Status Encode(EncodeArgs args, EncodeCounts* counts) {
    args.counts = counts;
    return Encode(std::span<const EncodeArgs>(&args, 1));
  }
  absl::Status Decode(const DecodeArgs& args) { return Decode(std::span(&args, 1)); }
  absl::Status Gather(const GatherArgs& args) { return Gather(std::span(&args, 1)); }
};

}  // namespace kvern

#endif  // KVERN_KERNELS_BACKEND_H_
