// A parsed tensor borrows the file only after its span was checked against shape, data and
// neighbours.
#include "formats/safetensors.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "formats/safetensors_header.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvern::formats {
namespace {

constexpr int64_t kPrefixBytes = 8;
constexpr int64_t kMaxHeaderBytes = 100'000'000;  // of the format's specification

// The file's own names, made fit for a message.
std::string Shown(const std::string& name) {
  constexpr size_t kShownBytes = 64;
  return absl::StrCat("'", absl::CHexEscape(name.substr(0, kShownBytes)), "'");
}

uint64_t LittleEndian64(const std::byte* bytes) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | std::to_integer<uint64_t>(bytes[i]);
  return value;
}

absl::StatusOr<absl::string_view> HeaderText(std::span<const std::byte> file) {
  const auto file_bytes = static_cast<int64_t>(file.size());
  if (file_bytes < kPrefixBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("safetensors: got ", file_bytes, " bytes, want at least ", kPrefixBytes));
  }
  const uint64_t header_bytes = LittleEndian64(file.data());
  const int64_t most = std::min(kMaxHeaderBytes, file_bytes - kPrefixBytes);
  if (header_bytes > static_cast<uint64_t>(most)) {
    return absl::InvalidArgumentError(
        absl::StrCat("safetensors: header size got ", header_bytes, ", want at most ", most));
  }
  return absl::string_view(reinterpret_cast<const char*>(file.data()) + kPrefixBytes, header_bytes);
}

// Bytes that dtype and shape call for.
absl::StatusOr<int64_t> BytesOf(const std::string& name, const HeaderEntry& entry) {
  int64_t bytes = ElementBytes(entry.dtype);
  if (bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat("safetensors: dtype of ", Shown(name), " got ",
                                                   Shown(entry.dtype), ", want one such as F32"));
  }
  for (const int64_t extent : entry.shape) {
    if (!__builtin_mul_overflow(bytes, extent, &bytes)) continue;
    return absl::InvalidArgumentError(absl::StrCat("safetensors: shape of ", Shown(name), " got [",
                                                   absl::StrJoin(entry.shape, ", "),
                                                   "], want less than 2^63 bytes"));
  }
  return bytes;
}

absl::Status BadSpan(const std::string& name, const HeaderEntry& entry, const std::string& want) {
  return absl::InvalidArgumentError(absl::StrCat("safetensors: data_offsets of ", Shown(name),
                                                 " got [", entry.begin, ", ", entry.end, "], want ",
                                                 want));
}

absl::Status CheckSpan(const std::string& name, const HeaderEntry& entry, int64_t data_bytes) {
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return BadSpan(name, entry, absl::StrCat("a range inside ", data_bytes, " bytes of data"));
  }
  KVERN_ASSIGN_OR_RETURN(const int64_t want, BytesOf(name, entry));
  if (entry.end - entry.begin == want) return absl::OkStatus();
  return BadSpan(
      name, entry,
      absl::StrCat(want, " bytes for ", entry.dtype, " [", absl::StrJoin(entry.shape, ", "), "]"));
}

// In order of their offsets the tensors fill the data exactly: no overlap, no hole, nothing behind.
absl::Status CheckTiling(const std::map<std::string, HeaderEntry>& entries, int64_t data_bytes) {
  std::vector<std::pair<int64_t, int64_t>> spans;
  spans.reserve(entries.size());
  for (const auto& [name, entry] : entries) spans.emplace_back(entry.begin, entry.end);
  std::sort(spans.begin(), spans.end());
  int64_t expected = 0;
  for (const auto& [begin, end] : spans) {
    if (begin != expected) {
      return absl::InvalidArgumentError(
          absl::StrCat("safetensors: ", begin < expected ? "an overlap" : "a gap",
                       ", a tensor begins at ", begin, ", want ", expected));
    }
    expected = end;
  }
  if (expected == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "safetensors: got ", data_bytes, " bytes of data, want ", expected, " as the header says"));
}

template <class T>
std::vector<float> Widen(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    T value;  // copied out: tensors of a file are not aligned
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = ToFloat(value);
  }
  return values;
}

// Never throws: bytes that are no UTF-8 become U+FFFD.
std::string Dump(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

const TensorEntry* Safetensors::Find(const std::string& name) const {
  const auto entry = tensors.find(name);
  return entry == tensors.end() ? nullptr : &entry->second;
}

std::string Safetensors::Metadata(const std::string& key) const {
  const auto entry = metadata.find(key);
  return entry == metadata.end() ? std::string() : entry->second;
}

int64_t ElementBytes(const std::string& dtype) {
  static constexpr struct {
    const char* name;
    int64_t bytes;
  } kTypes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
      {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8},
  };
  for (const auto& type : kTypes) {
    if (dtype == type.name) return type.bytes;
  }
  return 0;
}

absl::StatusOr<Safetensors> ParseSafetensors(std::span<const std::byte> file) {
  KVERN_ASSIGN_OR_RETURN(const absl::string_view text, HeaderText(file));
  KVERN_ASSIGN_OR_RETURN(Header header, ParseHeader(text));
  const std::span<const std::byte> data = file.subspan(kPrefixBytes + text.size());
  const auto data_bytes = static_cast<int64_t>(data.size());
  for (const auto& [name, entry] : header.entries) {
    KVERN_RETURN_IF_ERROR(CheckSpan(name, entry, data_bytes));
  }
  KVERN_RETURN_IF_ERROR(CheckTiling(header.entries, data_bytes));

  Safetensors contents;
  contents.metadata = std::move(header.metadata);
  for (auto& [name, entry] : header.entries) {
    const auto bytes = data.subspan(static_cast<size_t>(entry.begin),
                                    static_cast<size_t>(entry.end - entry.begin));
    contents.tensors.emplace(name,
                             TensorEntry{std::move(entry.dtype), std::move(entry.shape), bytes});
  }
  return contents;
}

std::string SafetensorsHeader(const Safetensors& contents) {
  std::vector<std::string> members;
  if (!contents.metadata.empty()) {
    members.push_back(absl::StrCat("\"__metadata__\":", Dump(contents.metadata)));
  }
  size_t offset = 0;
  for (const auto& [name, tensor] : contents.tensors) {
    const size_t end = offset + tensor.bytes.size();
    members.push_back(absl::StrCat(Dump(name), ":{\"dtype\":", Dump(tensor.dtype), ",\"shape\":[",
                                   absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", offset,
                                   ",", end, "]}"));
    offset = end;
  }
  std::string json = absl::StrCat("{", absl::StrJoin(members, ","), "}");
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string header(kPrefixBytes, '\0');
  for (int i = 0; i < kPrefixBytes; ++i) {
    header[i] = static_cast<char>(uint64_t{json.size()} >> (8 * i));
  }
  return header + json;
}

std::string WriteSafetensors(const Safetensors& contents) {
  std::string file = SafetensorsHeader(contents);
  for (const auto& [name, tensor] : contents.tensors) {
    file.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return file;
}

absl::StatusOr<std::vector<float>> ToFloats(const std::string& name, const TensorEntry& tensor) {
  if (tensor.dtype == "F32") return Widen<float>(tensor.bytes);
  if (tensor.dtype == "F16") return Widen<Float16>(tensor.bytes);
  if (tensor.dtype == "BF16") return Widen<BFloat16>(tensor.bytes);
  return absl::InvalidArgumentError(absl::StrCat("safetensors: dtype of ", Shown(name), " got ",
                                                 Shown(tensor.dtype), ", want F32, F16 or BF16"));
}

}  // namespace kvern::formats
