// Ids, counts and enums are checked here; which addresses the strides can form, where regions are.
#include "server/rpc/pool_from_proto.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/field_path.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/policy_from_proto.h"
#include "server/rpc/tensor_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxBlocks = std::numeric_limits<uint32_t>::max();

// Numbers only: what the handle opens is the backend's to say. Messages never show its bytes.
absl::StatusOr<DeviceHandle> FromProto(const v1::CudaIpc& sent, const FieldPath& path) {
  DeviceHandle handle;
  if (sent.handle().size() != handle.ipc.size()) {
    return BadField(path.Child("handle"),
                    absl::StrCat("got ", sent.handle().size(), " bytes, want ", handle.ipc.size()));
  }
  if (!memory::IsDeviceUuid(sent.device_uuid())) {
    return BadField(path.Child("device_uuid"),
                    absl::StrCat("got ", Quoted(sent.device_uuid()),
                                 ", want GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"));
  }
  constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("size_bytes"), sent.size_bytes(), 1, kLargest));
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("offset_bytes"), sent.offset_bytes(), 0, kLargest - sent.size_bytes()));
  if (sent.offset_bytes() % memory::kDeviceAlignment != 0) {
    return BadField(path.Child("offset_bytes"),
                    absl::StrCat("got ", sent.offset_bytes(), ", want a multiple of ",
                                 memory::kDeviceAlignment));
  }
  std::memcpy(handle.ipc.data(), sent.handle().data(), handle.ipc.size());
  handle.device_uuid = sent.device_uuid();
  handle.offset_bytes = sent.offset_bytes();
  handle.size_bytes = sent.size_bytes();
  return handle;
}

absl::StatusOr<memory::RegionSource> FromProto(const v1::Region& region, const FieldPath& path) {
  if (region.has_cuda_ipc()) {
    if (region.attachment_id().empty()) return FromProto(region.cuda_ipc(), path.Child("cuda_ipc"));
    return BadField(path, "got an attachment_id and a cuda_ipc, want one of them");
  }
  memory::AttachmentId id;
  if (region.attachment_id().size() != id.size()) {
    return BadField(path.Child("attachment_id"), absl::StrCat("got ", region.attachment_id().size(),
                                                              " bytes, want ", id.size()));
  }
  std::copy(region.attachment_id().begin(), region.attachment_id().end(), id.begin());
  return id;
}

absl::StatusOr<memory::PoolView> FromProto(const v1::KvView& view, int64_t regions,
                                           const FieldPath& path) {
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("region"), view.region(), 0, regions - 1));
  if (view.base_offset() < 0) {
    return BadField(path.Child("base_offset"),
                    absl::StrCat("got ", view.base_offset(), ", want 0 or more"));
  }
  memory::PoolView out;
  out.region = view.region();
  out.base_offset = view.base_offset();
  out.strides = {view.block_stride(), view.head_stride(), view.token_stride(), view.dim_stride()};
  return out;
}

absl::StatusOr<memory::EngineLabel> FromProto(v1::Engine engine, const FieldPath& path) {
  switch (engine) {
    case v1::ENGINE_VLLM:
      return memory::EngineLabel::kVllm;
    case v1::ENGINE_SGLANG:
      return memory::EngineLabel::kSglang;
    case v1::ENGINE_TRTLLM:
      return memory::EngineLabel::kTrtllm;
    case v1::ENGINE_LLAMACPP:
      return memory::EngineLabel::kLlamacpp;
    case v1::ENGINE_TRANSFORMERS:
      return memory::EngineLabel::kTransformers;
    case v1::ENGINE_UNSPECIFIED:
    case v1::ENGINE_OTHER:
      return memory::EngineLabel::kOther;
    default:
      return BadField(path, absl::StrCat("got ", static_cast<int>(engine),
                                         ", want a declared value of the enum"));
  }
}

absl::Status SetRegions(const v1::Pool& pool, const Limits& limits, const FieldPath& path,
                        memory::PoolSpec* out) {
  const FieldPath regions = path.Child("regions");
  KVERN_RETURN_IF_ERROR(CheckRange(regions, pool.regions_size(), 1, limits.regions_per_pool));
  for (int i = 0; i < pool.regions_size(); ++i) {
    KVERN_ASSIGN_OR_RETURN(memory::RegionSource source, FromProto(pool.regions(i), regions.At(i)));
    out->regions.push_back(std::move(source));
  }
  return absl::OkStatus();
}

absl::Status SetLayers(const v1::Pool& pool, const Limits& limits, const FieldPath& path,
                       memory::PoolSpec* out) {
  const FieldPath layers = path.Child("layers");
  KVERN_RETURN_IF_ERROR(CheckRange(layers, pool.layers_size(), 1, limits.layers));
  int64_t previous = -1;
  for (int i = 0; i < pool.layers_size(); ++i) {
    const v1::PoolLayer& layer = pool.layers(i);
    const FieldPath at = layers.At(i);
    KVERN_RETURN_IF_ERROR(CheckRange(at.Child("layer"), layer.layer(), 0, limits.layers - 1));
    if (layer.layer() <= previous) {
      return BadField(at.Child("layer"), absl::StrCat("got ", layer.layer(), " after ", previous,
                                                      ", want ascending layers"));
    }
    previous = layer.layer();
    memory::PoolLayer one;
    one.layer = layer.layer();
    KVERN_ASSIGN_OR_RETURN(one.k, FromProto(layer.k(), pool.regions_size(), at.Child("k")));
    KVERN_ASSIGN_OR_RETURN(one.v, FromProto(layer.v(), pool.regions_size(), at.Child("v")));
    out->layers.push_back(one);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<memory::PoolSpec> FromProto(const v1::RegisterPoolRequest& request,
                                           const Limits& limits) {
  const v1::Pool& pool = request.pool();
  const FieldPath path("pool");
  memory::PoolSpec out;
  KVERN_ASSIGN_OR_RETURN(out.id,
                         ParseOptionalName(pool.name(), Collection::kPools, path.Child("name")));
  KVERN_ASSIGN_OR_RETURN(out.model,
                         ParseName(pool.model(), Collection::kModels, path.Child("model")));
  KVERN_ASSIGN_OR_RETURN(out.dtype, FromProto(pool.dtype(), path.Child("dtype")));
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("block_tokens"), pool.block_tokens(), 1, limits.block_tokens));
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("num_blocks"), pool.num_blocks(), 1, kMaxBlocks));
  out.block_tokens = pool.block_tokens();
  out.num_blocks = pool.num_blocks();
  KVERN_RETURN_IF_ERROR(SetRegions(pool, limits, path, &out));
  KVERN_RETURN_IF_ERROR(SetLayers(pool, limits, path, &out));
  KVERN_ASSIGN_OR_RETURN(const pipeline::ShapeClass shape_class,
                         FromProto(pool.max_shape_class(), path.Child("max_shape_class")));
  out.max_shape_class = static_cast<int>(shape_class);
  KVERN_ASSIGN_OR_RETURN(out.engine, FromProto(pool.engine(), path.Child("engine")));
  out.read_only = pool.read_only();
  return out;
}

absl::Status BindModel(const pipeline::ModelSpec& model, memory::PoolSpec* pool) {
  // Ascending, so the last one is the largest.
  const FieldPath path("pool");
  const FieldPath layers = path.Child("layers");
  const int64_t last = static_cast<int64_t>(pool->layers.size()) - 1;
  const FieldPath at = layers.At(last);
  KVERN_RETURN_IF_ERROR(
      CheckRange(at.Child("layer"), pool->layers[last].layer, 0, model.num_layers - 1));
  pool->kv_heads = model.kv_heads;
  pool->head_dim = model.head_dim;
  return absl::OkStatus();
}

}  // namespace kvern::rpc
