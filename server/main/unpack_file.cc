// Sizes are checked here, the table by the pipeline, then one backend op decodes.
#include "server/main/unpack_file.h"

#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"

namespace kvern {
namespace {

constexpr int64_t kMaxLayers = 512;
constexpr int64_t kMaxKvHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxTokens = int64_t{1} << 22;

absl::Status CheckExtent(const char* name, int64_t got, int64_t most) {
  if (got >= 0 && got <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": got ", got, ", want 0 to ", most));
}

absl::Status CheckBytes(const char* name, size_t got, int64_t want) {
  if (static_cast<int64_t>(got) == want) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": got ", got, ", want ", want));
}

absl::Status CheckSizes(const PackedCache& packed) {
  KVERN_RETURN_IF_ERROR(CheckExtent("layers", packed.layers, kMaxLayers));
  KVERN_RETURN_IF_ERROR(CheckExtent("kv_heads", packed.kv_heads, kMaxKvHeads));
  KVERN_RETURN_IF_ERROR(CheckExtent("tokens", packed.tokens, kMaxTokens));
  KVERN_RETURN_IF_ERROR(CheckExtent("head_dim", packed.head_dim, kMaxHeadDim));
  // The products fit: the limits leave 2^51 elements.
  const int64_t rows = packed.layers * packed.kv_heads;
  KVERN_RETURN_IF_ERROR(
      CheckBytes("positions, in numbers", packed.positions.size(), rows * packed.tokens));
  if (packed.table.size() % sizeof(PackedRow) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("packed_table: got ", packed.table.size(),
                                                   " bytes, want rows of ", sizeof(PackedRow)));
  }
  if (packed.mean_key.empty()) return absl::OkStatus();
  return CheckBytes("packed_mu, in bytes", packed.mean_key.size(),
                    rows * packed.head_dim * static_cast<int64_t>(sizeof(Float16)));
}

template <class T>
std::vector<T> CopyOf(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

}  // namespace

absl::StatusOr<DenseKv> Unpack(const BackendOptions& backend_options, const PackedCache& packed) {
  KVERN_RETURN_IF_ERROR(CheckSizes(packed));
  KVERN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(backend_options));
  pipeline::ModelSpec model;
  model.num_layers = static_cast<int32_t>(packed.layers);
  model.q_heads = static_cast<int32_t>(packed.kv_heads);
  model.kv_heads = static_cast<int32_t>(packed.kv_heads);
  model.head_dim = static_cast<int32_t>(packed.head_dim);
  model.rope.layout = packed.rope_layout;
  model.rope.inv_freq = packed.inv_freq;
  pipeline::PackedKv kv;
  kv.blocks.assign(packed.blocks.begin(), packed.blocks.end());
  kv.table = CopyOf<PackedRow>(packed.table);
  kv.mean_key = CopyOf<Float16>(packed.mean_key);
  kv.dtype = packed.dtype;

  const int64_t layer_bytes =
      packed.kv_heads * packed.tokens * packed.head_dim * SizeOf(packed.dtype);
  DenseKv dense;
  dense.k.resize(packed.layers * layer_bytes);
  dense.v.resize(packed.layers * layer_bytes);
  pipeline::UnpackTarget target;
  for (int64_t layer = 0; layer < packed.layers; ++layer) {
    const auto view = [&](std::vector<std::byte>& plane) {
      return DenseKvRef(packed.dtype, plane.data() + layer * layer_bytes, packed.kv_heads,
                        packed.tokens, packed.head_dim);
    };
    target.keys.push_back(view(dense.k));
    target.values.push_back(view(dense.v));
  }
  KVERN_RETURN_IF_ERROR(pipeline::Unpack(*backend, model, kv, packed.positions, target));
  return dense;
}

}  // namespace kvern
