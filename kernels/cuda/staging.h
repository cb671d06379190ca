// Copies between host memory of any shape and dense device memory, through pinned memory: the host
// packs one piece while the device moves another.
#ifndef KVERN_KERNELS_CUDA_STAGING_H_
#define KVERN_KERNELS_CUDA_STAGING_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/kv_ref.h"
#include "kernels/cuda/pinned_ring.h"

namespace kvern::cuda {

// Dense device memory is a run of equal units (bytes, elements, rows), which are never split.
struct Units {
  int64_t bytes = 1;  // of one, at most 4096
  int64_t count = 0;
};

class Staging {
 public:
  // Packs `count` units from `first` on into `to`.
  using Pack = absl::FunctionRef<void(int64_t first, int64_t count, std::byte* to)>;
  using Unpack = std::function<void(int64_t first, int64_t count, const std::byte* from)>;

  static absl::StatusOr<std::unique_ptr<Staging>> Make(DeviceContext& device,
                                                       int64_t ring_half_bytes);

  // Host memory has been read when this returns; the device gets it in stream order.
  absl::Status Upload(std::byte* device, Units units, Pack pack, Ask ask);
  // Enqueues copies; `unpack` runs during this or a later call, at the latest in Finish. An
  // answer that must not stay half in host memory is for Ask::kHurry.
  absl::Status Download(const std::byte* device, Units units, Unpack unpack, Ask ask);
  // Every download has been unpacked.
  absl::Status Finish(Ask ask);
  // Forgets downloads that were not finished, for the next op.
  void Abandon();

 private:
  struct Piece {
    int64_t first;
    int64_t count;
    const std::byte* from;
    std::shared_ptr<const Unpack> unpack;
  };
  Staging(DeviceContext& device, std::unique_ptr<PinnedRing> ring)
      : device_(device), ring_(std::move(ring)) {}
  // A piece of the ring for some of `units` from `first` on, never empty.
  absl::StatusOr<std::span<std::byte>> Take(Units units, int64_t first, Ask ask);
  absl::Status Copy(void* to, const void* from, size_t bytes);
  absl::Status UnpackHalf(int half, Ask ask);

  DeviceContext& device_;
  const std::unique_ptr<PinnedRing> ring_;
  std::vector<Piece> pieces_[PinnedRing::kHalves];  // on their way to the host
};

// Rows [first, first + count) of the dense [kv_heads, tokens, head_dim] form of `ref`, from and to
// host memory. Rows that a head does not hold are packed as zeros.
void PackRows(const KvRef& ref, int64_t first, int64_t count, std::byte* to);
void UnpackRows(const KvRef& ref, int64_t first, int64_t count, const std::byte* from);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_STAGING_H_
