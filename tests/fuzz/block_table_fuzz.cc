// Any numbers as a block table: accepted exactly when a count by hand finds no flaw.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/base/status_macros.h"
#include "server/memory/block_table.h"

namespace {

using kvern::memory::BlockTableSpec;

bool IsSet(const std::vector<uint32_t>& ids, int64_t num_blocks) {
  const std::set<uint32_t> distinct(ids.begin(), ids.end());
  return distinct.size() == ids.size() &&
         (distinct.empty() || int64_t{*distinct.rbegin()} < num_blocks);
}

// Blocks that hold the tokens, without the division that the product uses; -1 above `most`.
int64_t BlocksFor(const BlockTableSpec& spec, int64_t most) {
  __extension__ __int128 held = 0;
  int64_t blocks = 0;
  while (held < spec.num_tokens && blocks <= most) {
    held += spec.block_tokens;
    ++blocks;
  }
  return blocks > most ? -1 : blocks;
}

bool IsMeaningful(const BlockTableSpec& spec) {
  return spec.block_tokens >= 1 && spec.num_tokens >= 0 && spec.num_blocks >= 0;
}

}  // namespace

// 32 bytes of spec, one byte that splits the ids into source and destination, then ids.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  BlockTableSpec spec;
  if (size < sizeof(spec) + 1) return 0;
  std::memcpy(&spec, data, sizeof(spec));
  const size_t split = data[sizeof(spec)];
  const uint8_t* first = data + sizeof(spec) + 1;
  std::vector<uint32_t> ids((size - sizeof(spec) - 1) / sizeof(uint32_t));
  if (!ids.empty()) std::memcpy(ids.data(), first, ids.size() * sizeof(uint32_t));

  const auto count = static_cast<int64_t>(ids.size());
  const bool sound = IsMeaningful(spec) && count <= spec.max_blocks &&
                     BlocksFor(spec, count) == count && IsSet(ids, spec.num_blocks);
  KVERN_CHECK(ValidateBlockTable(spec, ids, "ids").ok() == sound);

  const auto middle = ids.begin() + static_cast<ptrdiff_t>(std::min(split, ids.size()));
  const std::vector<uint32_t> source(ids.begin(), middle);
  const std::vector<uint32_t> destination(middle, ids.end());
  const bool fresh = std::none_of(destination.begin(), destination.end(), [&](uint32_t id) {
    return std::find(source.begin(), source.end(), id) != source.end();
  });
  const bool usable = IsMeaningful(spec) && fresh && IsSet(destination, spec.num_blocks) &&
                      static_cast<int64_t>(destination.size()) <= spec.max_blocks;
  KVERN_CHECK(ValidateDestination(spec, destination, source, "ids").ok() == usable);
  return 0;
}
