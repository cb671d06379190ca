// Decodes a packed result file without a server: what `kvern unpack` runs.
#ifndef KVERN_SERVER_MAIN_UNPACK_FILE_H_
#define KVERN_SERVER_MAIN_UNPACK_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backends.h"
#include "kernels/base/dtype.h"
#include "kernels/base/rotation.h"

namespace kvern {

// The tensors of ruling 13 as they lie in the file: untrusted. Borrows.
struct PackedCache {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t tokens = 0;  // of the longest (layer, kv_head)
  int64_t head_dim = 0;
  DType dtype = DType::kBF16;  // what decoding restores
  RopeLayout rope_layout = RopeLayout::kHalf;
  std::vector<float> inv_freq;  // [rotary dims / 2]; empty: unknown, fine without rm
  std::span<const std::byte> blocks;
  std::span<const std::byte> table;     // i64 [rows, 8]
  std::span<const std::byte> mean_key;  // f16 [layers, kv_heads, head_dim], or empty
  std::vector<int32_t> positions;       // [layers, kv_heads, tokens], -1 fills
};

// [layers, kv_heads, tokens, head_dim], zeros beyond a row's count.
struct DenseKv {
  std::vector<std::byte> k;
  std::vector<std::byte> v;
};

// Errors: InvalidArgument (what, got, want) for sizes that do not fit each other and tables that
// leave their blocks; FailedPrecondition/ROPE_UNKNOWN; of MakeBackend.
absl::StatusOr<DenseKv> Unpack(const BackendOptions& backend, const PackedCache& packed);

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_UNPACK_FILE_H_
