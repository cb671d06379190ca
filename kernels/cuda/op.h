// One op from host arguments to launches: collects what the kernels read, uploads it, hands out
// scratch, and brings answers back to host memory.
//
//   Op op(device, "row_norms");
//   const Rows rows = op.AddRows(specs);
//   RowNormsParams params{.rows = rows, .norms = op.AddScores(views, Access::kWrite)};
//   KVERN_RETURN_IF_ERROR(op.Ready());                      // uploads; the first error so far
//   op.Launched(LaunchRowNorms(params, op.stream()));
//   return op.End();                                        // copies answers out
//
// Pointers returned are device memory, valid until End. When memory runs out they are null and
// Ready says so; nothing was launched then.
#ifndef KVERN_KERNELS_CUDA_OP_H_
#define KVERN_KERNELS_CUDA_OP_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/device_context.h"
#include "kernels/cuda/problem.h"
#include "kernels/cuda/strided_bytes.h"
#include "kernels/op_args.h"

namespace kvern::cuda {

enum class Access : uint8_t { kRead, kWrite, kReadWrite };

// Rows of one sequence: `kv_heads` and `row_tokens` are those of its scores or masks.
struct RowsSpec {
  LayerRefs layers;
  int64_t kv_heads = 0;
  int64_t row_tokens = 0;
};

class Op {
 public:
  Op(DeviceContext& device, const char* name);
  ~Op();  // gives scratch back in stream order, also after an error
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  // Rows of the cohort in the order sequence, layer, kv_head, cut into tiles of 256 tokens.
  Rows AddRows(std::span<const RowsSpec> cohort);
  // Layers [sequence, layer] of the same cohort for a second cache (values), in the same order.
  // `access` kWrite and kReadWrite: rows in host memory are copied out by End.
  Layers AddLayers(std::span<const LayerRefs> cohort, Access access);
  // One pointer per row [sequence, layer, kv_head].
  const ScoreRow* AddScores(std::span<const ScoreView> cohort, Access access);
  // The same, as the host sees them.
  std::vector<ScoreRow> ScoreRows(std::span<const ScoreView> cohort, Access access);
  const MaskRow* AddMasks(std::span<const MaskView> cohort);
  // One per sequence; null tables make null entries (cosine == nullptr).
  const DeviceRotation* AddRotations(std::span<const RotationTable* const> cohort);

  // Device copy of a host array, which may change or go as soon as this returns.
  template <class T>
  const T* Upload(std::span<const T> host) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<const T*>(UploadBytes(std::as_bytes(host)));
  }
  template <class T>
  const T* Upload(const std::vector<T>& host) {
    return Upload(std::span<const T>(host));
  }
  // A strided host view, made dense.
  template <class T, int N>
  const T* UploadDense(TensorView<const T, N> view) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<const T*>(UploadStrided(StridedBytes::Of(view)));
  }
  // Not initialised.
  template <class T>
  T* Scratch(int64_t count) {
    return static_cast<T*>(ScratchBytes(count * static_cast<int64_t>(sizeof(T))));
  }
  // Scratch that End copies to `host`, which must stay until then.
  template <class T>
  T* Result(std::span<T> host) {
    static_assert(std::is_trivially_copyable_v<T>);
    return static_cast<T*>(ResultBytes(std::as_writable_bytes(host)));
  }
  // `bytes` of the caller for kernels to write: themselves when the device reaches them (then
  // nothing is copied), else scratch with their contents that End copies back. Asked for the same
  // bytes again, it gives the same memory.
  std::byte* InOut(std::span<std::byte> bytes);
  const std::byte* In(std::span<const std::byte> bytes);
  // Sets device memory of this op to 0 before the launches.
  void Clear(void* device, int64_t bytes);

  cudaStream_t stream() const { return device_.stream(); }
  // A word of pinned memory that becomes non-zero when the call is no longer wanted: kernels that
  // run long ask it between steps.
  const int32_t* StopWord() const { return device_.StopWord(); }

  // Uploads what was added. The first error of all calls above; asks the bound StopCheck.
  absl::Status Ready();
  void Launched(cudaError_t error);
  // Copies answers out. Waits only when there are any in host memory; meanwhile asks the bound
  // StopCheck and, when it fires, sets the stop word and waits for the device to notice.
  absl::Status End();

 private:
  // Host memory that End fills from dense device memory.
  struct Answer {
    const std::byte* device;
    Units units;
    Staging::Unpack unpack;
  };

  const void* UploadBytes(std::span<const std::byte> host);
  const void* UploadStrided(const StridedBytes& view);
  const std::byte* UploadUnits(Units units, Staging::Pack pack);
  void* ScratchBytes(int64_t bytes);
  void* ResultBytes(std::span<std::byte> host);
  void Fill(std::byte* device, Units units, Staging::Pack pack);
  void FlushPage();
  KvLayer LayerOf(const KvRef& ref, Access access);
  KvLayer StagedLayer(KvRef ref, Access access);
  float* ScoresOf(const ScoreView& view, Access access);
  DeviceRotation RotationOf(const RotationTable& table);

  DeviceContext& device_;
  const char* const name_;
  absl::Status status_;  // the first error
  bool timed_ = false;   // the clock runs
  std::vector<std::pair<std::byte*, int64_t>> scratch_;
  // Small uploads gather here and travel together.
  std::vector<std::byte> page_;
  std::byte* page_device_ = nullptr;
  std::vector<Answer> answers_;
  // Whole buffers of the caller, by address.
  std::map<const std::byte*, std::byte*> in_out_;
  std::map<const std::byte*, const std::byte*> in_;
  // Block tables, which layers share, by address and length.
  std::map<std::pair<const uint32_t*, int64_t>, const uint32_t*> block_tables_;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_OP_H_
