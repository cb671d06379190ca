// A path is text only once something is wrong with it.
#include "server/rpc/field_path.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"

namespace kvern::rpc {

std::string FieldPath::ToString() const {
  std::string text = parent_ == nullptr ? std::string() : parent_->ToString();
  if (name_ == nullptr) return absl::StrCat(text, "[", index_, "]");
  return text.empty() ? std::string(name_) : absl::StrCat(text, ".", name_);
}

absl::Status BadField(const FieldPath& path, absl::string_view what) {
  const std::string field = path.ToString();
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", what)), field);
}

absl::Status CheckRange(const FieldPath& path, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadField(path, absl::StrCat("got ", value, ", want ", low, "..", high));
}

absl::Status CheckCount(const FieldPath& path, int64_t count, int64_t most,
                        absl::string_view unit) {
  if (count <= most) return absl::OkStatus();
  return BadField(path, absl::StrCat("got ", count, " ", unit, ", want at most ", most));
}

absl::StatusOr<int64_t> CheckedProduct(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (factor < 0 || __builtin_mul_overflow(product, factor, &product)) {
      return absl::InvalidArgumentError("size product: got an overflow, want at most 2^63 - 1");
    }
  }
  return product;
}

std::string Quoted(absl::string_view text) {
  const absl::string_view head = CutUtf8(text, 64);
  return absl::StrCat("\"", head, head.size() < text.size() ? "..." : "", "\"");
}

absl::string_view CutUtf8(absl::string_view text, size_t bytes) {
  if (text.size() <= bytes) return text;
  size_t end = bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace kvern::rpc
