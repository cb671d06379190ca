// Field paths and the checks every untrusted number passes, each naming what, got and want.
#ifndef KVERN_SERVER_RPC_FIELD_PATH_H_
#define KVERN_SERVER_RPC_FIELD_PATH_H_

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvern::rpc {

// `sequences[2].paged.block_ids`, linked through the stack so that no text is made until an error
// needs it. Borrows its parent: a path lives inside the expression or function that made it.
class FieldPath {
 public:
  explicit FieldPath(const char* root) : name_(root) {}
  FieldPath Child(const char* name) const { return FieldPath(this, name, -1); }
  FieldPath At(int64_t index) const { return FieldPath(this, nullptr, index); }
  std::string ToString() const;

 private:
  FieldPath(const FieldPath* parent, const char* name, int64_t index)
      : parent_(parent), name_(name), index_(index) {}
  const FieldPath* parent_ = nullptr;
  const char* name_;
  int64_t index_ = -1;
};

// INVALID_ARGUMENT "<path>: <what>" carrying the path.
absl::Status BadField(const FieldPath& path, absl::string_view what);
// low <= value <= high.
absl::Status CheckRange(const FieldPath& path, int64_t value, int64_t low, int64_t high);
// At most `most` entries or bytes, `unit` in the plural.
absl::Status CheckCount(const FieldPath& path, int64_t count, int64_t most, absl::string_view unit);

// InvalidArgument without a field when a factor is negative or the product leaves int64.
absl::StatusOr<int64_t> CheckedProduct(std::initializer_list<int64_t> factors);

// Client text for a message: in quotes, cut to 64 bytes at a character's edge.
std::string Quoted(absl::string_view text);
// The longest prefix of at most `bytes` that does not cut a UTF-8 character.
absl::string_view CutUtf8(absl::string_view text, size_t bytes);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_FIELD_PATH_H_
