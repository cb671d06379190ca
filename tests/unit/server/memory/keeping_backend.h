// A backend whose device keeps bytes and nothing more: its addresses fault for the host, it can be

#ifndef KVERN_TESTS_UNIT_SERVER_MEMORY_KEEPING_BACKEND_H_
#define KVERN_TESTS_UNIT_SERVER_MEMORY_KEEPING_BACKEND_H_

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace kvern::memory {

class KeepingBackend final : public Backend {
 public:
  // One piece of at most `room_bytes`, not zero at first, as on a device.
  explicit KeepingBackend(int64_t room_bytes)
      : room_bytes_(room_bytes), bytes_(static_cast<size_t>(room_bytes), std::byte{0xFF}) {
    void* memory = mmap(nullptr, bytes_.size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    base_ = static_cast<std::byte*>(memory);
  }
  ~KeepingBackend() override {
    EXPECT_EQ(buffers, 0) << "memory outlived its backend";
    munmap(base_, bytes_.size());
  }

  std::atomic<bool> lost = false;
  std::atomic<int> calls = 0;    // that went to the device
  std::atomic<int> buffers = 0;  // alive

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override {
    if (bytes > room_bytes_) return absl::ResourceExhaustedError("device: no memory left");
    ++buffers;
    const auto free = [](void* owner, std::byte*, int64_t) {
      --static_cast<KeepingBackend*>(owner)->buffers;
    };
    return Buffer(base_, bytes, free, this);
  }
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* device) override {
    return OnDevice([&] { std::copy(host.begin(), host.end(), Real(device)); });
  }
  absl::Status CopyOut(const std::byte* device, std::span<std::byte> host) override {
    return OnDevice([&] { std::copy_n(Real(device), host.size(), host.begin()); });
  }
  absl::Status Zero(std::byte* device, int64_t bytes) override {
    return OnDevice([&] { std::fill_n(Real(device), bytes, std::byte{0}); });
  }
  absl::Status Health() const override {
    return lost ? absl::InternalError("device: lost") : absl::OkStatus();
  }
  std::optional<DeviceFacts> Device() const override { return DeviceFacts{}; }
  absl::string_view Name() const override { return "keeping"; }
  absl::string_view InstructionSet() const override { return "none"; }
  void Bind(const StopCheck*) override {}
  bool Batches() const override { return true; }
  absl::Status Finish() override { return Health(); }
  absl::StatusOr<int64_t> Lap() override { return 0; }
  absl::StatusOr<StagedRows> Stage(LayerRefs) override { return None(); }
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Import(const DeviceHandle&) override {
    return None();
  }

  absl::Status RowNorms(std::span<const RowNormsArgs>) override { return None(); }
  absl::Status TriAttention(std::span<const TriAttentionArgs>) override { return None(); }
  absl::Status ExpectedAttention(std::span<const ExpectedAttentionArgs>) override { return None(); }
  absl::Status WindowAttention(std::span<const WindowAttentionArgs>) override { return None(); }
  absl::Status KeyDiff(std::span<const KeyDiffArgs>) override { return None(); }
  absl::Status AttentionMass(std::span<const AttentionMassArgs>) override { return None(); }
  absl::Status ZScore(std::span<const ZScoreArgs>) override { return None(); }
  absl::Status Scale(float, std::span<const ScoreView>) override { return None(); }
  absl::Status Blend(std::span<const BlendArgs>) override { return None(); }
  absl::Status ShareRows(std::span<const ShareRowsArgs>) override { return None(); }
  absl::Status HideScores(std::span<const HideScoresArgs>) override { return None(); }
  absl::Status TopK(std::span<const TopKArgs>) override { return None(); }
  absl::Status Diverse(std::span<const DiverseArgs>) override { return None(); }
  absl::Status MeanKey(std::span<const MeanKeyArgs>) override { return None(); }
  absl::Status Encode(std::span<const EncodeArgs>) override { return None(); }
  absl::Status Decode(std::span<const DecodeArgs>) override { return None(); }
  absl::Status Gather(std::span<const GatherArgs>) override { return None(); }

 private:
  static absl::Status None() { return absl::InternalError("keeping: it has no ops"); }
  std::byte* Real(const std::byte* device) { return bytes_.data() + (device - base_); }
  template <class Work>
  absl::Status OnDevice(Work&& work) {
    if (lost) return Health();
    const std::lock_guard<std::mutex> lock(mutex_);
    ++calls;
    work();
    return absl::OkStatus();
  }

  const int64_t room_bytes_;
  std::mutex mutex_;
  std::vector<std::byte> bytes_;
  std::byte* base_ = nullptr;
};

}  // namespace kvern::memory

#endif  // KVERN_TESTS_UNIT_SERVER_MEMORY_KEEPING_BACKEND_H_
