// Runs of rows that lie side by side in the host's layout move by one memcpy.
#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/base/kv_row.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/device_context.h"

namespace kvern::cuda {
namespace {

enum class Way : uint8_t { kPack, kUnpack };

// `count` rows of one head that follow each other in one block.
template <Way way>
void MoveRun(const KvRef& ref, std::byte* host, int64_t count, std::byte* dense) {
  const int64_t size = SizeOf(ref.dtype);
  const int64_t row_bytes = ref.head_dim * size;
  if (ref.HasContiguousRows() && (ref.strides.token == row_bytes || count == 1)) {
    const size_t bytes = static_cast<size_t>(count * row_bytes);
    if constexpr (way == Way::kPack) std::memcpy(dense, host, bytes);
    if constexpr (way == Way::kUnpack) std::memcpy(host, dense, bytes);
    return;
  }
  for (int64_t row = 0; row < count; ++row) {
    std::byte* const strided = host + row * ref.strides.token;
    std::byte* const packed = dense + row * row_bytes;
    if constexpr (way == Way::kPack) {
      CopyRowBytes({strided, ref.strides.dim}, {packed, size}, ref.head_dim, size);
    } else {
      CopyRowBytes({packed, size}, {strided, ref.strides.dim}, ref.head_dim, size);
    }
  }
}

template <Way way>
void MoveRows(const KvRef& ref, int64_t first, int64_t count, std::byte* dense) {
  const int64_t row_bytes = ref.head_dim * SizeOf(ref.dtype);
  for (int64_t row = first; row < first + count;) {
    const int64_t head = row / ref.tokens;
    const int64_t token = row - head * ref.tokens;
    int64_t run = std::min(
        {ref.block_tokens - token % ref.block_tokens, ref.tokens - token, first + count - row});
    std::byte* const at = dense + (row - first) * row_bytes;
    const int64_t held = way == Way::kPack ? ref.Length(head) : ref.tokens;
    if (token < held) {
      run = std::min(run, held - token);
      MoveRun<way>(ref, ref.Address(head, token), run, at);
    } else {
      std::memset(at, 0, static_cast<size_t>(run * row_bytes));
    }
    row += run;
  }
}

}  // namespace

void PackRows(const KvRef& ref, int64_t first, int64_t count, std::byte* to) {
  MoveRows<Way::kPack>(ref, first, count, to);
}
void UnpackRows(const KvRef& ref, int64_t first, int64_t count, const std::byte* from) {
  MoveRows<Way::kUnpack>(ref, first, count, const_cast<std::byte*>(from));
}

absl::StatusOr<std::unique_ptr<Staging>> Staging::Make(DeviceContext& device,
                                                       int64_t ring_half_bytes) {
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<PinnedRing> ring,
                         PinnedRing::Make(device, ring_half_bytes));
  return std::unique_ptr<Staging>(new Staging(device, std::move(ring)));
}

absl::StatusOr<std::span<std::byte>> Staging::Take(Units units, int64_t first, Ask ask) {
  std::span<std::byte> piece = ring_->Take(units.bytes, units.count - first);
  if (!piece.empty()) return piece;
  KVERN_RETURN_IF_ERROR(UnpackHalf(1 - ring_->half(), ask));
  KVERN_RETURN_IF_ERROR(ring_->Turn(ask));
  return ring_->Take(units.bytes, units.count - first);
}

absl::Status Staging::Copy(void* to, const void* from, size_t bytes) {
  KVERN_RETURN_IF_ERROR(device_.Health());
  return device_.Check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, device_.stream()),
                       "a copy");
}

absl::Status Staging::Upload(std::byte* device, Units units, Pack pack, Ask ask) {
  for (int64_t first = 0; first < units.count;) {
    KVERN_ASSIGN_OR_RETURN(const std::span<std::byte> piece, Take(units, first, ask));
    const int64_t count = static_cast<int64_t>(piece.size()) / units.bytes;
    pack(first, count, piece.data());
    KVERN_RETURN_IF_ERROR(Copy(device + first * units.bytes, piece.data(), piece.size()));
    first += count;
  }
  return absl::OkStatus();
}

absl::Status Staging::Download(const std::byte* device, Units units, Unpack unpack, Ask ask) {
  const auto shared = std::make_shared<const Unpack>(std::move(unpack));
  for (int64_t first = 0; first < units.count;) {
    KVERN_ASSIGN_OR_RETURN(const std::span<std::byte> piece, Take(units, first, ask));
    KVERN_RETURN_IF_ERROR(Copy(piece.data(), device + first * units.bytes, piece.size()));
    const int64_t count = static_cast<int64_t>(piece.size()) / units.bytes;
    pieces_[ring_->half()].push_back({first, count, piece.data(), shared});
    first += count;
  }
  return absl::OkStatus();
}

absl::Status Staging::UnpackHalf(int half, Ask ask) {
  if (pieces_[half].empty()) return absl::OkStatus();
  KVERN_RETURN_IF_ERROR(ring_->Await(half, ask));
  for (const Piece& piece : pieces_[half]) (*piece.unpack)(piece.first, piece.count, piece.from);
  pieces_[half].clear();
  return absl::OkStatus();
}

absl::Status Staging::Finish(Ask ask) {
  const int half = ring_->half();
  KVERN_RETURN_IF_ERROR(UnpackHalf(1 - half, ask));
  if (pieces_[half].empty()) return absl::OkStatus();
  KVERN_RETURN_IF_ERROR(ring_->Seal());
  return UnpackHalf(half, ask);
}

void Staging::Abandon() {
  for (std::vector<Piece>& pieces : pieces_) pieces.clear();
}

}  // namespace kvern::cuda
