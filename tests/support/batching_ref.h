// The ref backend in the clothes of a device: one op serves a cohort, rows are copied before ops
// read them, its memory can be touched by ops and copies alone (anyone else's access is a fault of
// the process), op calls are counted, and any of them can be made to fail.
#ifndef KVERN_TESTS_SUPPORT_BATCHING_REF_H_
#define KVERN_TESTS_SUPPORT_BATCHING_REF_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/ref/ref_backend.h"

namespace kvern::support {

class BatchingRef final : public Backend {
 public:
  // Op calls by name, whatever the cohort.
  std::map<std::string, int> calls;
  // Asked before each op, Stage and Finish, with its name and the size of its cohort; an error is
  // the op's.
  std::function<absl::Status(const std::string& op, size_t cohort)> before;
  // What Lap answers; negative: what ref says.
  int64_t lap_micros = -1;
  absl::Status health;

  // Pieces of its memory that are in use.
  size_t Buffers() const { return memory_.size(); }

  absl::string_view Name() const override { return "batching"; }
  absl::string_view InstructionSet() const override { return "scalar"; }
  bool Batches() const override { return true; }
  void Bind(const StopCheck* stop) override { ref_.Bind(stop); }

  absl::Status RowNorms(std::span<const RowNormsArgs> cohort) override;
  absl::Status TriAttention(std::span<const TriAttentionArgs> cohort) override;
  absl::Status ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) override;
  absl::Status WindowAttention(std::span<const WindowAttentionArgs> cohort) override;
  absl::Status KeyDiff(std::span<const KeyDiffArgs> cohort) override;
  absl::Status AttentionMass(std::span<const AttentionMassArgs> cohort) override;
  absl::Status ZScore(std::span<const ZScoreArgs> cohort) override;
  absl::Status Scale(float factor, std::span<const ScoreView> cohort) override;
  absl::Status Blend(std::span<const BlendArgs> cohort) override;
  absl::Status ShareRows(std::span<const ShareRowsArgs> cohort) override;
  absl::Status HideScores(std::span<const HideScoresArgs> cohort) override;
  absl::Status TopK(std::span<const TopKArgs> cohort) override;
  absl::Status Diverse(std::span<const DiverseArgs> cohort) override;
  absl::Status MeanKey(std::span<const MeanKeyArgs> cohort) override;
  absl::Status Encode(std::span<const EncodeArgs> cohort) override;
  absl::Status Decode(std::span<const DecodeArgs> cohort) override;
  absl::Status Gather(std::span<const GatherArgs> cohort) override;

  absl::Status Finish() override;
  absl::StatusOr<int64_t> Lap() override;
  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* device) override;
  absl::Status CopyOut(const std::byte* device, std::span<std::byte> host) override;
  absl::Status Zero(std::byte* device, int64_t bytes) override;
  absl::StatusOr<StagedRows> Stage(LayerRefs rows) override;
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Import(const DeviceHandle& handle) override {
    return ref_.Import(handle);
  }
  absl::Status Health() const override { return health; }
  std::optional<DeviceFacts> Device() const override { return std::nullopt; }

 private:
  class Opened;
  static void Free(void* self, std::byte* data, int64_t bytes);
  absl::Status Count(const std::string& op, size_t cohort);

  ref::RefBackend ref_;
  std::map<std::byte*, int64_t> memory_;  // of the device: address to bytes, in pages of its own
};

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_BATCHING_REF_H_
