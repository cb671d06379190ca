// Block tables: private, validated copies of what a client sent.
#ifndef KVERN_SERVER_MEMORY_BLOCK_TABLE_H_
#define KVERN_SERVER_MEMORY_BLOCK_TABLE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvern::memory {

struct BlockTableSpec {
  int64_t num_blocks = 0;  // of the pool: ids are 0..num_blocks-1
  int64_t block_tokens = 1;
  int64_t num_tokens = 0;  // physical
  int64_t max_blocks = 0;  // limit on the table's length
};

// The table has exactly ceil(num_tokens / block_tokens) ids, each in the pool, none twice.
// Errors: InvalidArgument with `field` as the field path (what, got, want).
absl::Status ValidateBlockTable(const BlockTableSpec& spec, const std::vector<uint32_t>& block_ids,
                                absl::string_view field);
// Destination blocks: in the pool, none twice, none in `block_ids`; any number up to max_blocks.
absl::Status ValidateDestination(const BlockTableSpec& spec,
                                 const std::vector<uint32_t>& destination,
                                 const std::vector<uint32_t>& block_ids, absl::string_view field);

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_BLOCK_TABLE_H_
