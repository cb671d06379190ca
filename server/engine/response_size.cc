// Upper bounds only: a refused answer costs nothing, a cut one would cost the caller its tables.
#include "server/engine/response_size.h"

#include <algorithm>

#include "server/pipeline/plan.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

constexpr int64_t kFixedBytes = 4096;  // outcome, figures, policy words, warnings
constexpr int64_t kVarintBytes = 5;    // of a u32 id or an i32 count

}  // namespace

ResponseFields FieldsFor(const ResponseFields& asked, Placement placement) {
  if (!asked.by_default) return asked;
  ResponseFields fields;
  fields.by_default = false;
  fields.kept = fields.positions =
      placement == Placement::kReturn || placement == Placement::kIndicesOnly;
  fields.k = fields.v = fields.packed = placement == Placement::kReturn;
  return fields;
}

int64_t ResponseBytes(const BoundSource& source, const pipeline::ResolvedPolicy& policy,
                      const std::vector<int32_t>& counts, const ResponseFields& fields) {
  const SlotShape shape = source.Shape();
  const int64_t longest = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  const int64_t slots = shape.Rows() * longest;
  int64_t bytes = kFixedBytes + 2 * kVarintBytes * shape.Rows();  // kept_counts, lengths
  if (source.paged != nullptr) {
    bytes += kVarintBytes * static_cast<int64_t>(2 * source.paged->block_ids.size() +
                                                 source.paged->destination_block_ids.size());
  }
  if (fields.kept) bytes += 4 * slots;
  if (fields.positions) bytes += 4 * slots;
  if (fields.scores) bytes += 4 * shape.Rows() * shape.tokens;
  if (policy.placement != Placement::kReturn) return bytes;
  if (policy.codecs.Packs()) {
    return fields.packed ? bytes + pipeline::PackedBytes(source.input, policy, counts) : bytes;
  }
  const int64_t tensor_bytes = slots * source.TokenBytes() / 2;
  return bytes + (fields.k ? tensor_bytes : 0) + (fields.v ? tensor_bytes : 0);
}

}  // namespace kvern::engine
