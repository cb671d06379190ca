// A result file is its source minus what no longer fits, plus what was kept and why.
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/compress_file.h"
#include "client/cpp/proto_types.h"

namespace kvern::client {
namespace {

// Statements about tokens that may be gone: they would contradict the new k and v.
constexpr const char* kStale[] = {"k",
                                  "v",
                                  "positions",
                                  "attention_mass",
                                  "external_scores",
                                  "scores",
                                  "kept_indices",
                                  "kept_counts",
                                  "packed",
                                  "packed_table",
                                  "packed_mu"};

template <class T>
std::span<const std::byte> AsBytes(const T& values) {
  return std::as_bytes(std::span(values.data(), values.size()));
}

void AddPacked(const CompressedCache& compressed, formats::Safetensors* file) {
  const CacheShape& shape = compressed.shape;
  file->tensors["packed"] = {"U8", {std::ssize(compressed.packed)}, AsBytes(compressed.packed)};
  file->tensors["packed_table"] = {
      "I64", {std::ssize(compressed.packed_table) / 64, 8}, AsBytes(compressed.packed_table)};
  if (!compressed.packed_mean_key.empty()) {
    file->tensors["packed_mu"] = {
        "F16", {shape.layers, shape.kv_heads, shape.head_dim}, AsBytes(compressed.packed_mean_key)};
  }
}

}  // namespace

absl::Status WriteCompressedFile(const std::string& path, const CacheFile& source,
                                 const CompressedCache& compressed, const Progress& progress) {
  const CacheShape& shape = compressed.shape;
  formats::Safetensors file;
  file.tensors = source.Contents().tensors;
  file.metadata = source.Contents().metadata;
  for (const char* name : kStale) file.tensors.erase(name);
  // Renumbered: the next position moved, and with it what the last queries were turned by.
  const int64_t next_position = compressed.result.num_logical_tokens();
  if (next_position != source.LogicalTokens()) file.tensors.erase("q_window");
  const std::vector<int64_t> slots = {shape.layers, shape.kv_heads, shape.tokens};
  file.tensors["positions"] = {"I32", slots, AsBytes(compressed.positions)};
  file.tensors["kept_indices"] = {"I32", slots, AsBytes(compressed.kept)};
  file.tensors["kept_counts"] = {
      "I32", {shape.layers, shape.kv_heads}, AsBytes(compressed.kept_counts)};
  if (!compressed.scores.empty()) {
    file.tensors["scores"] = {"F32",
                              {shape.layers, shape.kv_heads, compressed.source_tokens},
                              AsBytes(compressed.scores)};
  }
  if (compressed.Packed()) {
    AddPacked(compressed, &file);
  } else {
    const std::vector<int64_t> dense = {shape.layers, shape.kv_heads, shape.tokens, shape.head_dim};
    file.tensors["k"] = {FileDType(shape.dtype), dense, AsBytes(compressed.k)};
    file.tensors["v"] = {FileDType(shape.dtype), dense, AsBytes(compressed.v)};
  }
  file.metadata["format"] = "kvern-cache/1";
  file.metadata["kv_heads"] = absl::StrCat(shape.kv_heads);
  file.metadata["head_dim"] = absl::StrCat(shape.head_dim);
  file.metadata["dtype"] = Name(shape.dtype);
  file.metadata["logical_tokens"] = absl::StrCat(next_position);
  file.metadata["source_tokens"] = absl::StrCat(compressed.source_tokens);
  return WriteSafetensorsFile(path, file, progress);
}

}  // namespace kvern::client
