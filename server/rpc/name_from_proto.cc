// Names are prefix plus id; the id's alphabet keeps it safe in paths, logs and labels.
#include "server/rpc/name_from_proto.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace kvern::rpc {
namespace {

constexpr size_t kMaxIdBytes = 128;
constexpr size_t kSha256HexDigits = 64;

absl::string_view Prefix(Collection collection) {
  switch (collection) {
    case Collection::kModels:
      return "models/";
    case Collection::kPools:
      return "pools/";
    case Collection::kSequences:
      return "sequences/";
    case Collection::kPlans:
      return "plans/";
    case Collection::kCalibrations:
      break;
  }
  return "calibrations/";
}

bool IsIdCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-';
}

bool IsHexDigit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

bool IsId(absl::string_view id, Collection collection) {
  if (collection == Collection::kCalibrations) {
    return id.size() == kSha256HexDigits && std::all_of(id.begin(), id.end(), IsHexDigit);
  }
  return !id.empty() && id.size() <= kMaxIdBytes &&
         std::all_of(id.begin(), id.end(), IsIdCharacter);
}

}  // namespace

absl::StatusOr<std::string> ParseName(absl::string_view name, Collection collection,
                                      const FieldPath& path) {
  absl::string_view id = name;
  if (absl::ConsumePrefix(&id, Prefix(collection)) && IsId(id, collection)) return std::string(id);
  const absl::string_view want = collection == Collection::kCalibrations
                                     ? "{64 lower-case hex digits}"
                                     : "{1..128 bytes of [A-Za-z0-9_.-]}";
  return BadField(path, absl::StrCat("got ", Quoted(name), ", want ", Prefix(collection), want));
}

absl::StatusOr<std::string> ParseOptionalName(absl::string_view name, Collection collection,
                                              const FieldPath& path) {
  if (name.empty()) return std::string();
  return ParseName(name, collection, path);
}

std::string MakeName(absl::string_view id, Collection collection) {
  return id.empty() ? std::string() : absl::StrCat(Prefix(collection), id);
}

absl::Status CheckOpaqueId(absl::string_view id, const FieldPath& path) {
  if (!id.empty() && id.size() <= kMaxIdBytes) return absl::OkStatus();
  return BadField(path, absl::StrCat("got ", id.size(), " bytes, want 1..", kMaxIdBytes));
}

}  // namespace kvern::rpc
