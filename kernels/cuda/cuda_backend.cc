// Hands every op to its own file; memory and waiting are the device context's.
#include "kernels/cuda/cuda_backend.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/packed_layout.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/device_handle.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {
namespace {

constexpr int64_t kStagedAlign = 256;  // of each layer of a staged copy

int64_t DenseBytes(const KvRef& ref) {
  return int64_t{ref.kv_heads} * ref.tokens * ref.head_dim * SizeOf(ref.dtype);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Make(const DeviceOptions& options) {
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<DeviceContext> device, DeviceContext::Open(options));
  return std::unique_ptr<CudaBackend>(new CudaBackend(std::move(device)));
}

absl::Status CudaBackend::RowNorms(std::span<const RowNormsArgs> cohort) {
  return cuda::RowNorms(*device_, cohort);
}
absl::Status CudaBackend::TriAttention(std::span<const TriAttentionArgs> cohort) {
  return cuda::TriAttention(*device_, cohort);
}
absl::Status CudaBackend::ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) {
  return cuda::ExpectedAttention(*device_, cohort);
}
absl::Status CudaBackend::WindowAttention(std::span<const WindowAttentionArgs> cohort) {
  return cuda::WindowAttention(*device_, cohort);
}
absl::Status CudaBackend::KeyDiff(std::span<const KeyDiffArgs> cohort) {
  return cuda::KeyDiff(*device_, cohort);
}
absl::Status CudaBackend::AttentionMass(std::span<const AttentionMassArgs> cohort) {
  return cuda::AttentionMass(*device_, cohort);
}
absl::Status CudaBackend::ZScore(std::span<const ZScoreArgs> cohort) {
  return cuda::ZScore(*device_, cohort);
}
absl::Status CudaBackend::Scale(float factor, std::span<const ScoreView> cohort) {
  return cuda::Scale(*device_, factor, cohort);
}
absl::Status CudaBackend::Blend(std::span<const BlendArgs> cohort) {
  return cuda::Blend(*device_, cohort);
}
absl::Status CudaBackend::ShareRows(std::span<const ShareRowsArgs> cohort) {
  return cuda::ShareRows(*device_, cohort);
}
absl::Status CudaBackend::HideScores(std::span<const HideScoresArgs> cohort) {
  return cuda::HideScores(*device_, cohort);
}
absl::Status CudaBackend::TopK(std::span<const TopKArgs> cohort) {
  return cuda::TopK(*device_, cohort);
}
absl::Status CudaBackend::Diverse(std::span<const DiverseArgs> cohort) {
  return cuda::Diverse(*device_, cohort);
}
absl::Status CudaBackend::MeanKey(std::span<const MeanKeyArgs> cohort) {
  return cuda::MeanKey(*device_, cohort);
}
absl::Status CudaBackend::Encode(std::span<const EncodeArgs> cohort) {
  return cuda::Encode(*device_, cohort);
}
absl::Status CudaBackend::Decode(std::span<const DecodeArgs> cohort) {
  return cuda::Decode(*device_, cohort);
}
absl::Status CudaBackend::Gather(std::span<const GatherArgs> cohort) {
  return cuda::Gather(*device_, cohort);
}

absl::Status CudaBackend::Finish() { return device_->Drain(Ask::kBoundCheck, "finishing"); }

absl::StatusOr<int64_t> CudaBackend::Lap() {
  KVERN_RETURN_IF_ERROR(Finish());
  return device_->clock().Lap();
}

absl::StatusOr<Buffer> CudaBackend::Allocate(int64_t bytes) {
  KVERN_RETURN_IF_ERROR(device_->Health());
  if (bytes == 0) return Buffer();
  Arena& arena = device_->arena();
  std::byte* const data = arena.Allocate(bytes, Arena::End::kLow);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("device memory: got ", arena.FreeBytes(), " bytes free of the ", arena.bytes(),
                     " reserved at start, want ", bytes, " in one piece (--scratch-bytes)"));
  }
  const auto free = [](void* owner, std::byte* memory, int64_t size) {
    static_cast<Arena*>(owner)->Free(memory, size);
  };
  return Buffer(data, bytes, free, &arena);
}

absl::Status CudaBackend::CopyIn(std::span<const std::byte> host, std::byte* device) {
  return device_->CopyIn(host, device);
}
absl::Status CudaBackend::CopyOut(const std::byte* device, std::span<std::byte> host) {
  return device_->CopyOut(device, host);
}
absl::Status CudaBackend::Zero(std::byte* device, int64_t bytes) {
  return device_->Zero(device, bytes);
}

absl::StatusOr<StagedRows> CudaBackend::Stage(LayerRefs rows) {
  KVERN_RETURN_IF_ERROR(device_->Enter());
  StagedRows staged{{rows.begin(), rows.end()}, {}};
  int64_t bytes = 0;
  for (const KvRef& ref : rows) {
    if (!device_->Reaches(ref.base)) bytes += AlignUp(DenseBytes(ref), kStagedAlign);
  }
  KVERN_ASSIGN_OR_RETURN(staged.memory, Allocate(bytes));
  std::byte* next = staged.memory.data();
  for (KvRef& ref : staged.rows) {
    if (DenseBytes(ref) == 0 || device_->Reaches(ref.base)) continue;
    const int64_t row_bytes = ref.head_dim * SizeOf(ref.dtype);
    const KvRef host = ref;
    KVERN_RETURN_IF_ERROR(device_->staging().Upload(
        next, {.bytes = row_bytes, .count = int64_t{ref.kv_heads} * ref.tokens},
        [&](int64_t first, int64_t count, std::byte* to) { PackRows(host, first, count, to); },
        Ask::kBoundCheck));
    ref = DenseKvRef(host.dtype, next, host.kv_heads, host.tokens, host.head_dim);
    ref.lengths = host.lengths;
    next += AlignUp(DenseBytes(ref), kStagedAlign);
  }
  return staged;
}

absl::StatusOr<std::unique_ptr<DeviceMapping>> CudaBackend::Import(const DeviceHandle& handle) {
  return OpenDeviceHandle(device_, handle);
}

}  // namespace kvern::cuda
