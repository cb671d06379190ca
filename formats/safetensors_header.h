// The JSON header of a safetensors file, read without building a JSON tree.
#ifndef KVERN_FORMATS_SAFETENSORS_HEADER_H_
#define KVERN_FORMATS_SAFETENSORS_HEADER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvern::formats {

// As written: 0 or more everywhere, nothing else checked.
struct HeaderEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t begin = 0;  // of the tensor's bytes in the data
  int64_t end = 0;
};

struct Header {
  std::map<std::string, HeaderEntry> entries;
  std::map<std::string, std::string> metadata;
};

// Errors: InvalidArgument for anything but one object {name: {dtype, shape, data_offsets}} with an
// optional `__metadata__` of strings; repeated names; unknown, repeated or missing members; more
// than 32 axes. Depth is bounded by the form.
absl::StatusOr<Header> ParseHeader(absl::string_view text);

}  // namespace kvern::formats

#endif  // KVERN_FORMATS_SAFETENSORS_HEADER_H_
