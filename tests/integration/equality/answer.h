// What must be the same however a request is served, and how it is read back.
#ifndef KVERN_TESTS_INTEGRATION_EQUALITY_ANSWER_H_
#define KVERN_TESTS_INTEGRATION_EQUALITY_ANSWER_H_

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/kv_ref.h"
#include "server/memory/byte_access.h"
#include "tests/support/host_kv.h"
#include "tests/support/random_case.h"

namespace kvern::equality {

// How one request is served. Everything else of it is the case's.
struct Draw {
  std::string backend = "ref";
  int threads = 1;
  std::string instruction_set;  // of the cpu backend
  bool over_grpc = false;
  pipeline::Source source = pipeline::Source::kInline;
  pipeline::Placement placement = pipeline::Placement::kReturn;
  int32_t block_tokens = 16;
  support::TileLayout layout = support::TileLayout::kHeadMajor;
  bool shuffled = false;
  bool store_holds_positions = false;  // instead of the request
  uint64_t seed = 0;                   // of the block order
};

inline std::string Describe(const Draw& draw) {
  constexpr const char* kSources[] = {"paged", "stored", "inline"};
  constexpr const char* kPlacements[] = {"default",      "COPY_TO",  "COMPACT",
                                         "INDICES_ONLY", "TO_STORE", "RETURN"};
  return absl::StrCat(
      draw.backend, " threads=", draw.threads, " ", draw.instruction_set,
      draw.over_grpc ? " grpc " : " direct ", kSources[static_cast<int>(draw.source)], " ",
      kPlacements[static_cast<int>(draw.placement)], " block_tokens=", draw.block_tokens,
      " layout=", static_cast<int>(draw.layout), draw.shuffled ? " shuffled" : "",
      draw.store_holds_positions ? " positions in the store" : "");
}

using Bytes = std::string;

template <class T>
Bytes BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
inline Bytes BytesOf(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline Bytes BytesOf(double value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
inline Bytes BytesOf(std::optional<double> value) { return value ? BytesOf(*value) : "none"; }

// Fields by name, as bytes. A field that a draw cannot give (the K of INDICES_ONLY) is absent.
struct Answer {
  std::map<std::string, Bytes> fields;
  bool applied = false;
  bool failed = false;

  void Set(const std::string& name, Bytes bytes) { fields[name] = std::move(bytes); }
  void Set(const std::string& name, int64_t number) { fields[name] = absl::StrCat(number); }
};

inline Answer Failure(const absl::Status& status) {
  Answer answer;
  answer.failed = true;
  answer.Set("status",
             absl::StrCat(absl::StatusCodeToString(status.code()), " ", ReasonOf(status)));
  return answer;
}

// "" when all fields that both have are equal, else the first that differs.
inline std::string Difference(const Answer& a, const Answer& b) {
  if (a.failed != b.failed) {
    const Answer& failed = a.failed ? a : b;
    return absl::StrCat("one failed: ", failed.fields.at("status"));
  }
  for (const auto& [name, bytes] : a.fields) {
    const auto other = b.fields.find(name);
    if (other == b.fields.end() || other->second == bytes) continue;
    if (bytes.size() != other->second.size() || bytes.size() < 12) {
      const bool is_text = bytes.size() < 200 && other->second.size() < 200;
      return absl::StrCat(
          name, ": ", bytes.size(), " and ", other->second.size(), " bytes",
          is_text ? absl::StrCat(": \"", bytes, "\", \"", other->second, "\"") : "");
    }
    size_t at = 0;
    while (bytes[at] == other->second[at]) ++at;
    return absl::StrCat(name, ": byte ", at, " of ", bytes.size());
  }
  return "";
}

// The kept rows of one role as dense [layers, kv_heads, slots, head_dim]; zero behind a row's
// count.
struct DenseRows {
  int64_t slots = 0;
  std::vector<int32_t> counts;  // [layers * kv_heads]
  std::vector<KvRef> views;     // [layers]
  // Reaches rows that the host cannot follow, which are contiguous; null: it can.
  const memory::ByteAccess* access = nullptr;

  Bytes Read() const {
    Bytes bytes;
    int64_t row = 0;
    for (const KvRef& view : views) {
      const int64_t size = SizeOf(view.dtype);
      const int64_t row_bytes = view.head_dim * size;
      for (int64_t head = 0; head < view.kv_heads; ++head, ++row) {
        const size_t begin = bytes.size();
        bytes.resize(begin + slots * row_bytes);
        for (int64_t slot = 0; slot < counts[row]; ++slot) {
          const std::byte* from = view.Address(head, slot);
          char* to = bytes.data() + begin + slot * row_bytes;
          if (access != nullptr) {
            const auto row_out = std::as_writable_bytes(std::span(to, row_bytes));
            EXPECT_TRUE(access->CopyOut(from, row_out).ok());
            continue;
          }
          for (int64_t d = 0; d < view.head_dim; ++d) {
            std::memcpy(to + d * size, from + d * view.strides.dim, size);
          }
        }
      }
    }
    return bytes;
  }
};

// Writes a case's dense plane into views [layers] of a stored sequence.
inline void WriteStored(const support::RandomCase& random, const std::vector<std::byte>& plane,
                        const std::vector<KvRef>& views, const memory::ByteAccess& access) {
  for (int64_t row = 0; row < random.Rows(); ++row) {
    for (int64_t token = 0; token < random.Length(row); ++token) {
      const auto from = std::span(plane).subspan((row * random.tokens + token) * random.RowBytes(),
                                                 random.RowBytes());
      std::byte* to = views[row / random.KvHeads()].Address(row % random.KvHeads(), token);
      EXPECT_TRUE(access.CopyIn(from, to).ok());
    }
  }
}

// Writes a case's dense plane into views [layers], whatever their strides.
inline void WriteRows(const support::RandomCase& random, const std::vector<std::byte>& plane,
                      const std::vector<KvRef>& views) {
  const int64_t size = SizeOf(random.dtype);
  for (int64_t row = 0; row < random.Rows(); ++row) {
    const KvRef& view = views[row / random.KvHeads()];
    for (int64_t token = 0; token < random.Length(row); ++token) {
      std::byte* to = view.Address(row % random.KvHeads(), token);
      const std::byte* from = plane.data() + (row * random.tokens + token) * random.RowBytes();
      for (int64_t d = 0; d < view.head_dim; ++d) {
        std::memcpy(to + d * view.strides.dim, from + d * size, size);
      }
    }
  }
}

}  // namespace kvern::equality

#endif  // KVERN_TESTS_INTEGRATION_EQUALITY_ANSWER_H_
