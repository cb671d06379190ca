// safetensors, the file format that server and client share: calibrations and caches.
//
// u64 header size (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then the
// tensors' bytes. Untrusted: every size and offset is checked before a pointer is formed.
#ifndef KVERN_FORMATS_SAFETENSORS_H_
#define KVERN_FORMATS_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace kvern::formats {

// One tensor of a parsed file; borrows the file's bytes.
struct TensorEntry {
  std::string dtype;  // as in the file: "F32", "BF16", "I32", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

struct Safetensors {
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, std::string> metadata;

  // Null when absent.
  const TensorEntry* Find(const std::string& name) const;
  // Empty when absent.
  std::string Metadata(const std::string& key) const;
};

// 0 for a dtype that the format does not know.
int64_t ElementBytes(const std::string& dtype);

// Borrows `file`. Errors: InvalidArgument (what, got, want): header size, JSON, dtype, shape
// product against offsets, overlaps and gaps, bytes after the last tensor.
absl::StatusOr<Safetensors> ParseSafetensors(std::span<const std::byte> file);

// Header of a file with these tensors in name order, 8-byte aligned; the tensors' bytes follow it
// in the same order. Only dtype, shape and the size of bytes are read.
std::string SafetensorsHeader(const Safetensors& contents);

// Whole small file in memory.
std::string WriteSafetensors(const Safetensors& contents);

// Values as f32 from F32, F16 or BF16. Errors: InvalidArgument naming the tensor.
absl::StatusOr<std::vector<float>> ToFloats(const std::string& name, const TensorEntry& tensor);

}  // namespace kvern::formats

#endif  // KVERN_FORMATS_SAFETENSORS_H_
