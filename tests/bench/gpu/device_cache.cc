// Filled piece by piece, so that the host never holds a copy of the whole.
#include "tests/bench/gpu/device_cache.h"

#include <algorithm>
#include <utility>

#include "kernels/base/dtype.h"
#include "kernels/base/status_macros.h"
#include "tests/support/host_kv.h"

namespace kvern::bench {

absl::StatusOr<DeviceRows> MakeRows(Backend& backend, const CacheShape& shape, int64_t tokens) {
  const int64_t layer_bytes = shape.kv_heads * tokens * shape.head_dim * 2;
  DeviceRows rows;
  KVERN_ASSIGN_OR_RETURN(rows.memory, backend.Allocate(shape.layers * layer_bytes));
  for (int64_t layer = 0; layer < shape.layers; ++layer) {
    rows.refs.push_back(DenseKvRef(DType::kBF16, rows.memory.data() + layer * layer_bytes,
                                   shape.kv_heads, tokens, shape.head_dim));
  }
  return rows;
}

absl::Status FillNormal(Backend& backend, const DeviceRows& rows, uint64_t seed) {
  constexpr int64_t kPeriod = 1000003;
  std::vector<BFloat16> normals;
  normals.reserve(kPeriod);
  for (const float value : support::RandomFloats(kPeriod, seed)) {
    normals.push_back(FromFloat<BFloat16>(value));
  }
  const std::span<const std::byte> bytes = std::as_bytes(std::span<const BFloat16>(normals));
  const auto period = static_cast<int64_t>(bytes.size());
  for (int64_t at = 0; at < rows.memory.bytes(); at += period) {
    const int64_t count = std::min(period, rows.memory.bytes() - at);
    KVERN_RETURN_IF_ERROR(backend.CopyIn(bytes.first(count), rows.memory.data() + at));
  }
  return absl::OkStatus();
}

}  // namespace kvern::bench
