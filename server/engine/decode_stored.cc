// Decoding asks for the positions of all slots, as keys without their mean are rotated back.
#include "server/engine/decode_stored.h"

#include <new>

#include "kernels/base/kv_ref.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"

namespace kvern::engine {
namespace {

// [layers, kv_heads, num_tokens], -1 beyond a row's length.
std::vector<int32_t> SlotPositionsOf(const memory::StoredInfo& info, int64_t rows) {
  if (info.per_head_positions) return info.positions;
  std::vector<int32_t> positions(rows * info.num_tokens, -1);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t length = info.lengths.empty() ? info.num_tokens : info.lengths[row];
    for (int64_t slot = 0; slot < length; ++slot) {
      positions[row * info.num_tokens + slot] =
          info.positions.empty() ? static_cast<int32_t>(slot) : info.positions[slot];
    }
  }
  return positions;
}

int64_t Layers(const pipeline::ModelSpec& model, const memory::StoredInfo& info) {
  return info.layer_indices.empty() ? model.num_layers
                                    : static_cast<int64_t>(info.layer_indices.size());
}

int64_t LayerBytes(const memory::StoredInfo& info) {
  return int64_t{info.kv_heads} * info.num_tokens * info.head_dim * SizeOf(info.dtype);
}

absl::Status Decode(Backend& backend, const pipeline::ModelSpec& model,
                    const memory::StoredSequence& sequence, DenseKv* dense) {
  const memory::StoredInfo& info = sequence.Info();
  const int64_t layers = Layers(model, info);
  const int64_t layer_bytes = LayerBytes(info);
  dense->k.assign(layers * layer_bytes, std::byte{0});
  dense->v.assign(layers * layer_bytes, std::byte{0});
  const pipeline::PackedView packed = {sequence.Blocks(), info.table, info.mean_key, info.dtype};
  pipeline::UnpackTarget target;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const auto view = [&](std::vector<std::byte>& bytes) {
      return DenseKvRef(info.dtype, bytes.data() + layer * layer_bytes, info.kv_heads,
                        info.num_tokens, info.head_dim);
    };
    target.keys.push_back(view(dense->k));
    target.values.push_back(view(dense->v));
  }
  return pipeline::Unpack(backend, model, packed, SlotPositionsOf(info, layers * info.kv_heads),
                          target);
}

}  // namespace

int64_t DenseBytes(const pipeline::ModelSpec& model, const memory::StoredInfo& info) {
  return 2 * Layers(model, info) * LayerBytes(info);
}

absl::Status DecodePacked(Backend& backend, const pipeline::ModelSpec& model,
                          const memory::StoredSequence& sequence, DenseKv* dense) {
  if (!sequence.Packed()) {
    return absl::FailedPreconditionError("sequence: got a dense one, want a packed one to decode");
  }
  try {
    return Decode(backend, model, sequence, dense);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("decode: got no memory for k and v, want more of it");
  }
}

}  // namespace kvern::engine
