// Cache files, `kvern-cache/1`: safetensors with k, v and what belongs to them
// (docs/quickstart.md, "Your own cache").
#ifndef KVERN_CLIENT_CPP_CACHE_FILE_H_
#define KVERN_CLIENT_CPP_CACHE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/safetensors.h"
#include "kernels/base/dtype.h"
#include "kvern/v1/types.pb.h"

namespace kvern::client {

// Called now and then while bytes move, and once at the end with done == total. May be null.
using Progress = std::function<void(int64_t done_bytes, int64_t total_bytes)>;

// A file's bytes, mapped read-only.
class MappedFile {
 public:
  // Errors: NotFound; InvalidArgument for an empty file or one that cannot be mapped.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> Bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

// [layers, kv_heads, tokens, head_dim]. `tokens` counts the slots of the longest row.
struct CacheShape {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t tokens = 0;
  int64_t head_dim = 0;
  DType dtype = DType::kBF16;
  int64_t Rows() const { return layers * kv_heads; }
  // Of k, or of v.
  int64_t PlaneBytes() const { return Rows() * tokens * head_dim * SizeOf(dtype); }
};

// A validated cache file. Copies share the mapping.
class CacheFile {
 public:
  // Errors: NotFound; InvalidArgument naming the tensor or key (what, got, want).
  static absl::StatusOr<CacheFile> Open(const std::string& path);

  const std::string& Path() const { return path_; }
  const formats::Safetensors& Contents() const { return contents_; }
  const CacheShape& Shape() const { return shape_; }
  // True: `packed` and its table stand in for k and v, which are then empty.
  bool Packed() const { return contents_.Find("packed") != nullptr; }
  std::span<const std::byte> K() const { return BytesOf("k"); }
  std::span<const std::byte> V() const { return BytesOf("v"); }
  // Empty when the tensor is absent.
  std::span<const std::byte> BytesOf(const std::string& tensor) const;
  // An i32 tensor; empty when absent.
  std::vector<int32_t> Ints(const std::string& tensor) const;
  // An integer of the metadata, `fallback` when absent. Open has checked those of
  // architecture.md 3.
  int64_t Number(const std::string& key, int64_t fallback) const;

  // Layers of the model that are present; empty: all.
  std::vector<int32_t> LayerIndices() const { return Ints("layer_indices"); }
  // Tokens the request had processed: metadata, else one past the highest position.
  int64_t LogicalTokens() const;
  // As in the file; absent: values is empty, the slots are at 0..tokens-1.
  v1::Positions Positions() const;
  // Slots held by each (layer, kv_head), from negative positions or kept_counts; empty: all hold
  // Shape().tokens.
  std::vector<int32_t> Lengths() const;

 private:
  std::string path_;
  std::shared_ptr<const MappedFile> file_;
  formats::Safetensors contents_;
  CacheShape shape_;
};

// Writes a safetensors file: into a new file beside `path` that takes its name when complete.
// Errors: of the file system, naming the path.
absl::Status WriteSafetensorsFile(const std::string& path, const formats::Safetensors& contents,
                                  const Progress& progress);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_CACHE_FILE_H_
