// What an op reads and writes by rows: KV layers, scores, masks and rotations of a cohort.
#include <algorithm>
#include <limits>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"

namespace kvern::cuda {
namespace {

bool Aligned(int64_t bytes) { return bytes % 16 == 0; }

RowAccess AccessOf(const KvLayer& layer, DType dtype) {
  const bool vector =
      layer.dim_stride == SizeOf(dtype) && Aligned(reinterpret_cast<intptr_t>(layer.base)) &&
      Aligned(layer.block_stride) && Aligned(layer.head_stride) && Aligned(layer.token_stride);
  return vector ? RowAccess::kVector : RowAccess::kElements;
}

// Collects the layers of a cohort and what all of them allow.
class LayerList {
 public:
  void Add(const KvRef& ref, const KvLayer& layer) {
    if (layers_.empty()) shape_ = {ref.dtype, RowAccess::kVector, ref.head_dim};
    KVERN_CHECK(ref.dtype == shape_.dtype && ref.head_dim == shape_.head_dim);
    if (layer.tokens > 0 && AccessOf(layer, ref.dtype) == RowAccess::kElements) {
      shape_.access = RowAccess::kElements;
    }
    layers_.push_back(layer);
  }
  Layers UploadBy(Op& op) const {
    return {op.Upload(layers_), static_cast<int64_t>(layers_.size()), shape_};
  }
  int32_t size() const { return static_cast<int32_t>(layers_.size()); }

 private:
  std::vector<KvLayer> layers_;
  RowShape shape_;
};

}  // namespace

KvLayer Op::LayerOf(const KvRef& ref, Access access) {
  KVERN_CHECK(ref.tokens <= std::numeric_limits<int32_t>::max());
  if (ref.tokens == 0) return {};
  if (!device_.Reaches(ref.base)) return StagedLayer(ref, access);
  KvLayer layer;
  layer.base = ref.base;
  layer.block_stride = ref.strides.block;
  layer.head_stride = ref.strides.head;
  layer.token_stride = ref.strides.token;
  layer.dim_stride = ref.strides.dim;
  layer.block_tokens = FastDivisor::Of(static_cast<uint32_t>(ref.block_tokens));
  layer.tokens = static_cast<int32_t>(ref.tokens);
  if (ref.block_ids != nullptr) {
    const int64_t blocks = (ref.tokens + ref.block_tokens - 1) / ref.block_tokens;
    const auto [table, added] = block_tables_.try_emplace({ref.block_ids, blocks});
    if (added) table->second = Upload(std::span(ref.block_ids, static_cast<size_t>(blocks)));
    layer.block_ids = table->second;
  }
  return layer;
}

KvLayer Op::StagedLayer(KvRef ref, Access access) {
  // Rows that the op does not write come back as they were, also those beyond a head's length.
  if (access != Access::kRead) ref.lengths = nullptr;
  const int64_t row_bytes = ref.head_dim * SizeOf(ref.dtype);
  const Units units{.bytes = row_bytes, .count = ref.kv_heads * ref.tokens};
  auto* const device = static_cast<std::byte*>(ScratchBytes(units.bytes * units.count));
  Fill(device, units,
       [&](int64_t first, int64_t count, std::byte* to) { PackRows(ref, first, count, to); });
  if (access != Access::kRead) {
    answers_.push_back({device, units, [ref](int64_t first, int64_t count, const std::byte* from) {
                          UnpackRows(ref, first, count, from);
                        }});
  }
  KvLayer layer;
  layer.base = device;
  layer.head_stride = ref.tokens * row_bytes;
  layer.token_stride = row_bytes;
  layer.dim_stride = SizeOf(ref.dtype);
  layer.block_tokens = FastDivisor::Of(static_cast<uint32_t>(ref.tokens));
  layer.tokens = static_cast<int32_t>(ref.tokens);
  return layer;
}

Rows Op::AddRows(std::span<const RowsSpec> cohort) {
  LayerList layers;
  std::vector<HeadRow> rows;
  std::vector<Tile> tiles;
  for (size_t sequence = 0; sequence < cohort.size(); ++sequence) {
    const RowsSpec& spec = cohort[sequence];
    for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
      const KvRef& ref = spec.layers[layer];
      for (int64_t head = 0; head < spec.kv_heads; ++head) {
        HeadRow row;
        row.kv = layers.size();
        row.head = static_cast<int32_t>(head);
        row.layer = static_cast<int32_t>(layer);
        row.sequence = static_cast<int32_t>(sequence);
        row.tokens = static_cast<int32_t>(std::min(ref.Length(head), spec.row_tokens));
        row.row_tokens = static_cast<int32_t>(spec.row_tokens);
        row.first_tile = static_cast<int64_t>(tiles.size());
        for (int64_t first = 0; first < spec.row_tokens; first += kTile) {
          tiles.push_back({static_cast<uint32_t>(rows.size()), static_cast<uint32_t>(first)});
        }
        rows.push_back(row);
      }
      layers.Add(ref, LayerOf(ref, Access::kRead));
    }
  }
  return {layers.UploadBy(*this), Upload(rows), static_cast<int64_t>(rows.size()), Upload(tiles),
          static_cast<int64_t>(tiles.size())};
}

Layers Op::AddLayers(std::span<const LayerRefs> cohort, Access access) {
  LayerList layers;
  for (const LayerRefs refs : cohort) {
    for (const KvRef& ref : refs) layers.Add(ref, LayerOf(ref, access));
  }
  return layers.UploadBy(*this);
}

float* Op::ScoresOf(const ScoreView& view, Access access) {
  const StridedBytes host = StridedBytes::Of(view);
  const Units units{.bytes = sizeof(float), .count = host.Elements()};
  auto* const device = static_cast<std::byte*>(ScratchBytes(units.bytes * units.count));
  if (access != Access::kWrite) {
    Fill(device, units,
         [&](int64_t first, int64_t count, std::byte* to) { host.Pack(first, count, to); });
  }
  if (access != Access::kRead) {
    answers_.push_back({device, units, [host](int64_t first, int64_t count, const std::byte* from) {
                          host.Unpack(first, count, from);
                        }});
  }
  return reinterpret_cast<float*>(device);
}

std::vector<ScoreRow> Op::ScoreRows(std::span<const ScoreView> cohort, Access access) {
  std::vector<ScoreRow> rows;
  for (ScoreView view : cohort) {
    if (view.Size() > 0 && !device_.Reaches(view.data)) {
      view = DenseView(ScoresOf(view, access), view.shape[0], view.shape[1], view.shape[2]);
    }
    for (int64_t layer = 0; layer < view.shape[0]; ++layer) {
      for (int64_t head = 0; head < view.shape[1]; ++head) {
        rows.push_back({view.At(layer, head), view.stride[2]});
      }
    }
  }
  return rows;
}

const ScoreRow* Op::AddScores(std::span<const ScoreView> cohort, Access access) {
  return Upload(ScoreRows(cohort, access));
}

const MaskRow* Op::AddMasks(std::span<const MaskView> cohort) {
  std::vector<MaskRow> rows;
  for (const MaskView& view : cohort) {
    // Rows that heads or layers share travel once.
    MaskView distinct = view;
    for (int axis = 0; axis < 2; ++axis) {
      if (view.stride[axis] == 0) distinct.shape[axis] = std::min<int64_t>(1, view.shape[axis]);
    }
    const uint8_t* const device = view.data == nullptr ? nullptr : UploadDense(distinct);
    MaskView dense = DenseView(device, distinct.shape[0], distinct.shape[1], distinct.shape[2]);
    for (int axis = 0; axis < 2; ++axis) {
      if (view.stride[axis] == 0) dense.stride[axis] = 0;
    }
    for (int64_t layer = 0; layer < view.shape[0]; ++layer) {
      for (int64_t head = 0; head < view.shape[1]; ++head) {
        rows.push_back({device == nullptr ? nullptr : dense.At(layer, head)});
      }
    }
  }
  return Upload(rows);
}

DeviceRotation Op::RotationOf(const RotationTable& table) {
  DeviceRotation rotation;
  rotation.layout = table.layout;
  rotation.bands = table.bands;
  rotation.cosine = Upload(table.cosine);
  rotation.sine = Upload(table.sine);
  rotation.row_of_slot = Upload(table.row_of_slot);
  rotation.layer_stride = table.layer_stride;
  rotation.head_stride = table.head_stride;
  return rotation;
}

const DeviceRotation* Op::AddRotations(std::span<const RotationTable* const> cohort) {
  std::map<const RotationTable*, DeviceRotation> known;
  std::vector<DeviceRotation> rotations;
  for (const RotationTable* table : cohort) {
    const auto [entry, added] = known.try_emplace(table);
    if (added && table != nullptr) entry->second = RotationOf(*table);
    rotations.push_back(entry->second);
  }
  return Upload(rotations);
}

}  // namespace kvern::cuda
