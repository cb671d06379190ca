// The store knows bytes and positions, the model knows what they mean: a file needs both.
#include "client/cpp/stored_file.h"

#include <algorithm>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/proto_types.h"

namespace kvern::client {
namespace {

template <class T>
std::span<const std::byte> AsBytes(const T& values) {
  return std::as_bytes(std::span(values.data(), values.size()));
}

// What the tensors of the file borrow.
struct Slots {
  CacheShape shape;
  std::vector<int32_t> layer_indices;
  std::vector<int32_t> counts;     // [layers, kv_heads]
  std::vector<int32_t> positions;  // [layers, kv_heads, tokens], -1 fills
  std::vector<float> inv_freq;
};

absl::StatusOr<Slots> SlotsOf(const v1::ModelSpec& spec, const v1::StoredSequence& stored) {
  Slots slots;
  slots.layer_indices.assign(stored.layer_indices().begin(), stored.layer_indices().end());
  const int64_t layers =
      slots.layer_indices.empty() ? spec.num_layers() : std::ssize(slots.layer_indices);
  slots.shape = {layers, spec.kv_heads(), stored.num_tokens(), spec.head_dim(),
                 FromProto(stored.dtype()).value_or(DType::kBF16)};
  const int64_t rows = slots.shape.Rows();
  const int64_t tokens = slots.shape.tokens;
  slots.counts.assign(stored.lengths().begin(), stored.lengths().end());
  if (slots.counts.empty()) slots.counts.assign(rows, static_cast<int32_t>(tokens));
  const auto& sent = stored.positions();
  const int64_t want = sent.values().empty() ? 0 : sent.per_head() ? rows * tokens : tokens;
  if (std::ssize(slots.counts) != rows || sent.values_size() != want || tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        stored.name(), ": got ", slots.counts.size(), " lengths and ", sent.values_size(),
        " positions, want ", rows, " rows of up to ", tokens, " tokens as the model has"));
  }
  slots.positions.assign(rows * tokens, -1);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t slot = 0; slot < std::min<int64_t>(tokens, slots.counts[row]); ++slot) {
      const int64_t at = row * tokens + slot;
      slots.positions[at] = want == 0 ? static_cast<int32_t>(slot)
                                      : sent.values(static_cast<int>(sent.per_head() ? at : slot));
    }
  }
  slots.inv_freq.assign(spec.rope().inv_freq().begin(), spec.rope().inv_freq().end());
  return slots;
}

void AddMetadata(const v1::ModelSpec& spec, const v1::StoredSequence& stored,
                 formats::Safetensors* file) {
  file->metadata = {{"format", "kvern-cache/1"},
                    {"model", spec.display_name()},
                    {"num_layers", absl::StrCat(spec.num_layers())},
                    {"q_heads", absl::StrCat(spec.q_heads())},
                    {"kv_heads", absl::StrCat(spec.kv_heads())},
                    {"head_dim", absl::StrCat(spec.head_dim())},
                    {"logical_tokens", absl::StrCat(stored.num_logical_tokens())},
                    {"dtype", Name(FromProto(stored.dtype()).value_or(DType::kBF16))}};
  if (!spec.has_rope()) return;
  const v1::Rope& rope = spec.rope();
  file->metadata["rope_layout"] =
      rope.layout() == v1::ROPE_LAYOUT_INTERLEAVED ? "interleaved" : "half";
  file->metadata["rope_theta"] = absl::StrFormat("%.17g", rope.theta());
  file->metadata["rope_attention_scaling"] =
      absl::StrFormat("%.17g", rope.attention_scaling() > 0 ? rope.attention_scaling() : 1.0);
}

}  // namespace

absl::Status WriteFetchedFile(const std::string& path, const v1::Model& model,
                              const FetchedSequence& fetched, const Progress& progress) {
  const v1::StoredSequence& stored = fetched.header.sequence();
  auto slots = SlotsOf(model.spec(), stored);
  if (!slots.ok()) return slots.status();
  const CacheShape& shape = slots->shape;
  const bool packed = !fetched.header.packed_table().empty();
  const int64_t plane = packed ? 0 : shape.PlaneBytes();
  if (std::ssize(fetched.k) != plane || std::ssize(fetched.v) != plane) {
    return absl::InvalidArgumentError(absl::StrCat(stored.name(), ": got ", fetched.k.size(),
                                                   " bytes of k, want ", plane,
                                                   " as its model's geometry has"));
  }
  formats::Safetensors file;
  AddMetadata(model.spec(), stored, &file);
  file.tensors["positions"] = {
      "I32", {shape.layers, shape.kv_heads, shape.tokens}, AsBytes(slots->positions)};
  file.tensors["kept_counts"] = {"I32", {shape.layers, shape.kv_heads}, AsBytes(slots->counts)};
  if (!slots->layer_indices.empty()) {
    file.tensors["layer_indices"] = {"I32", {shape.layers}, AsBytes(slots->layer_indices)};
  }
  if (!slots->inv_freq.empty()) {
    file.tensors["inv_freq"] = {"F32", {std::ssize(slots->inv_freq)}, AsBytes(slots->inv_freq)};
  }
  if (packed) {
    const std::string& table = fetched.header.packed_table();
    file.tensors["packed"] = {"U8", {std::ssize(fetched.packed)}, AsBytes(fetched.packed)};
    file.tensors["packed_table"] = {"I64", {std::ssize(table) / 64, 8}, AsBytes(table)};
    if (const std::string& mean = fetched.header.mean_key(); !mean.empty()) {
      file.tensors["packed_mu"] = {
          "F16", {shape.layers, shape.kv_heads, shape.head_dim}, AsBytes(mean)};
    }
  } else {
    const std::vector<int64_t> dense = {shape.layers, shape.kv_heads, shape.tokens, shape.head_dim};
    file.tensors["k"] = {FileDType(shape.dtype), dense, AsBytes(fetched.k)};
    file.tensors["v"] = {FileDType(shape.dtype), dense, AsBytes(fetched.v)};
  }
  return WriteSafetensorsFile(path, file, progress);
}

}  // namespace kvern::client
