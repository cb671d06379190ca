// A frontend appends tokens between two calls; their positions follow from what the last call left.
#include "server/engine/slot_positions.h"

#include <algorithm>
#include <numeric>
#include <span>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

// Writes one row and answers how many tokens it holds beyond the remembered ones.
int64_t ExtendRow(const int32_t* known, int64_t known_tokens, int64_t next_position,
                  std::span<int32_t> row) {
  int64_t held = 0;
  while (held < known_tokens && known[held] >= 0) ++held;
  const int64_t length = static_cast<int64_t>(row.size());
  const int64_t kept = std::min(held, length);
  std::copy(known, known + kept, row.begin());
  for (int64_t slot = kept; slot < length; ++slot) {
    row[slot] = static_cast<int32_t>(next_position + slot - kept);
  }
  return length - kept;
}

absl::Status Bad(const std::string& field, const std::string& what) {
  return WithField(absl::InvalidArgumentError(absl::StrCat("positions: ", what)), field);
}

absl::Status CheckRow(const int32_t* row, int64_t length, int64_t logical_tokens,
                      const std::string& field) {
  int64_t last = -1;
  for (int64_t slot = 0; slot < length; ++slot) {
    if (row[slot] <= last) {
      return Bad(field, absl::StrCat("got ", row[slot], " after ", last, " at slot ", slot,
                                     ", want ascending ones from 0 on"));
    }
    last = row[slot];
  }
  if (last < logical_tokens) return absl::OkStatus();
  return Bad(field, absl::StrCat("got ", last, ", want below num_logical_tokens ", logical_tokens));
}

}  // namespace

SlotPositions Extend(const RememberedSlots& remembered, const SlotShape& shape) {
  SlotPositions positions;
  positions.per_head = remembered.per_head;
  int64_t appended = 0;
  if (!remembered.per_head) {
    positions.values.resize(shape.tokens);
    appended = ExtendRow(remembered.positions.data(), remembered.tokens, remembered.next_position,
                         std::span(positions.values));
  } else {
    KVERN_CHECK(static_cast<int64_t>(remembered.positions.size()) ==
                shape.Rows() * remembered.tokens);
    positions.values.assign(shape.Rows() * shape.tokens, -1);
    for (int64_t row = 0; row < shape.Rows(); ++row) {
      const int64_t more =
          ExtendRow(remembered.positions.data() + row * remembered.tokens, remembered.tokens,
                    remembered.next_position,
                    std::span(positions.values).subspan(row * shape.tokens, shape.Length(row)));
      appended = std::max(appended, more);
    }
  }
  positions.logical_tokens = remembered.next_position + appended;
  return positions;
}

SlotPositions Consecutive(const SlotShape& shape) {
  SlotPositions positions;
  positions.values.resize(shape.tokens);
  std::iota(positions.values.begin(), positions.values.end(), 0);
  positions.logical_tokens = shape.tokens;
  return positions;
}

SlotPositions Shared(SlotPositions positions, int64_t tokens) {
  if (!positions.per_head) return positions;
  std::vector<int32_t>& values = positions.values;
  for (size_t at = tokens; at < values.size(); ++at) {
    if (values[at] != values[at - tokens]) return positions;
  }
  values.resize(std::min(values.size(), static_cast<size_t>(tokens)));
  positions.per_head = false;
  return positions;
}

absl::Status CheckPositions(const SlotPositions& positions, const SlotShape& shape,
                            const std::string& field) {
  const int64_t rows = positions.per_head ? shape.Rows() : 1;
  if (static_cast<int64_t>(positions.values.size()) != rows * shape.tokens) {
    return Bad(field, absl::StrCat("got ", positions.values.size(), " values, want ",
                                   rows * shape.tokens));
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t length = positions.per_head ? shape.Length(row) : shape.tokens;
    KVERN_RETURN_IF_ERROR(CheckRow(positions.values.data() + row * shape.tokens, length,
                                   positions.logical_tokens, field));
  }
  return absl::OkStatus();
}

}  // namespace kvern::engine
