// A block id is trusted only after its copy was counted, bounded and found once.
#include "server/memory/block_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

absl::Status Invalid(absl::string_view field, const std::string& problem) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", problem)), field);
}

absl::Status ValidateSpec(const BlockTableSpec& spec, absl::string_view field) {
  if (spec.block_tokens >= 1 && spec.num_tokens >= 0 && spec.num_blocks >= 0) {
    return absl::OkStatus();
  }
  return Invalid(field, absl::StrCat("got ", spec.num_tokens, " tokens in blocks of ",
                                     spec.block_tokens, ", want 0 or more in blocks of 1 or more"));
}

absl::Status ValidateLength(const BlockTableSpec& spec, size_t length, absl::string_view field) {
  if (static_cast<int64_t>(length) <= spec.max_blocks) return absl::OkStatus();
  return Invalid(field, absl::StrCat("got ", length, " ids, want at most ", spec.max_blocks));
}

absl::Status ValidateId(const BlockTableSpec& spec, const std::vector<uint32_t>& block_ids,
                        size_t index, absl::string_view field) {
  if (int64_t{block_ids[index]} < spec.num_blocks) return absl::OkStatus();
  return Invalid(field, absl::StrCat("id at ", index, " got ", block_ids[index], ", want below ",
                                     spec.num_blocks));
}

ScratchVector<uint32_t> Sorted(const std::vector<uint32_t>& block_ids) {
  ScratchVector<uint32_t> sorted = block_ids;
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

absl::Status Twice(const std::vector<uint32_t>& block_ids, size_t index, absl::string_view field) {
  return Invalid(field, absl::StrCat("id at ", index, " got ", block_ids[index],
                                     " a second time, want each id once"));
}

// Sorted, equal ids are neighbours; the error names the second of them as it was sent.
absl::Status CheckOnce(const std::vector<uint32_t>& block_ids, absl::string_view field) {
  const ScratchVector<uint32_t> sorted = Sorted(block_ids);
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice == sorted.end()) return absl::OkStatus();
  const auto first = std::find(block_ids.begin(), block_ids.end(), *twice);
  const auto second = std::find(first + 1, block_ids.end(), *twice);
  return Twice(block_ids, static_cast<size_t>(second - block_ids.begin()), field);
}

}  // namespace

absl::Status ValidateBlockTable(const BlockTableSpec& spec, const std::vector<uint32_t>& block_ids,
                                absl::string_view field) {
  KVERN_RETURN_IF_ERROR(ValidateSpec(spec, field));
  KVERN_RETURN_IF_ERROR(ValidateLength(spec, block_ids.size(), field));
  const int64_t want =
      spec.num_tokens / spec.block_tokens + (spec.num_tokens % spec.block_tokens != 0 ? 1 : 0);
  if (static_cast<int64_t>(block_ids.size()) != want) {
    return Invalid(
        field, absl::StrCat("got ", block_ids.size(), " ids, want ", want, " for ", spec.num_tokens,
                            " tokens in blocks of ", spec.block_tokens));
  }
  for (size_t index = 0; index < block_ids.size(); ++index) {
    KVERN_RETURN_IF_ERROR(ValidateId(spec, block_ids, index, field));
  }
  return CheckOnce(block_ids, field);
}

absl::Status ValidateDestination(const BlockTableSpec& spec,
                                 const std::vector<uint32_t>& destination,
                                 const std::vector<uint32_t>& block_ids, absl::string_view field) {
  KVERN_RETURN_IF_ERROR(ValidateSpec(spec, field));
  KVERN_RETURN_IF_ERROR(ValidateLength(spec, destination.size(), field));
  const ScratchVector<uint32_t> source = Sorted(block_ids);
  for (size_t index = 0; index < destination.size(); ++index) {
    KVERN_RETURN_IF_ERROR(ValidateId(spec, destination, index, field));
    if (std::binary_search(source.begin(), source.end(), destination[index])) {
      return Invalid(field, absl::StrCat("id at ", index, " got ", destination[index],
                                         ", a block of the source; want fresh blocks"));
    }
  }
  return CheckOnce(destination, field);
}

}  // namespace kvern::memory
