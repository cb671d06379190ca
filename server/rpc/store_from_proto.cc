// A header says how many bytes will come; nothing is allocated before it adds up.
#include "server/rpc/store_from_proto.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/tensor_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxPosition = std::numeric_limits<int32_t>::max();

// The next one must exist.
absl::Status CheckEpoch(uint64_t epoch) {
  if (epoch < std::numeric_limits<uint64_t>::max()) return absl::OkStatus();
  const FieldPath path("header");
  return BadField(path.Child("epoch"), "got 2^64 - 1, want a lower one, so that it can grow");
}

// Of the slots that hold a token; -1 when there are none.
int64_t LastPosition(const std::vector<int32_t>& positions) {
  return positions.empty() ? -1 : *std::max_element(positions.begin(), positions.end());
}

std::vector<int32_t> NewPositions(const Append& append, int64_t logical_tokens) {
  if (!append.positions.empty()) return append.positions;
  std::vector<int32_t> positions(append.tokens);
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(logical_tokens));
  return positions;
}

// Each row gets the new positions right behind the tokens it holds, -1 behind those.
std::vector<int32_t> PerHeadPositions(const memory::StoredInfo& before,
                                      const std::vector<int32_t>& added, int64_t rows) {
  const int64_t tokens = before.num_tokens + static_cast<int64_t>(added.size());
  std::vector<int32_t> positions(rows * tokens, -1);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t held = before.lengths.empty() ? before.num_tokens : before.lengths[row];
    const int32_t* source =
        before.positions.data() + (before.per_head_positions ? row * before.num_tokens : 0);
    std::copy_n(source, held, positions.begin() + row * tokens);
    std::copy(added.begin(), added.end(), positions.begin() + row * tokens + held);
  }
  return positions;
}

// Positions and copies are made only for what the store could hold at all.
absl::Status CheckFits(const memory::StoredInfo& old, int64_t added, const Limits& limits) {
  const auto bytes =
      CheckedProduct({2, static_cast<int64_t>(old.layer_indices.size()), old.kv_heads,
                      old.num_tokens + added, old.head_dim, SizeOf(old.dtype)});
  if (bytes.ok() && *bytes <= limits.store_bytes) return absl::OkStatus();
  return WithField(absl::ResourceExhaustedError(
                       absl::StrCat("sequences/", old.id, ": got ", old.num_tokens + added,
                                    " tokens after the append, want at most what fits ",
                                    limits.store_bytes, " bytes (--store-bytes)")),
                   "header.num_tokens");
}

}  // namespace

absl::StatusOr<std::string> ModelOf(const v1::StoredSequence& header) {
  const FieldPath path("header");
  return ParseName(header.model(), Collection::kModels, path.Child("model"));
}

absl::StatusOr<memory::StoredInfo> FromProto(const v1::StoredSequence& header,
                                             const pipeline::ModelSpec& model,
                                             const Limits& limits) {
  const FieldPath path("header");
  memory::StoredInfo info;
  KVERN_ASSIGN_OR_RETURN(info.id,
                         ParseName(header.name(), Collection::kSequences, path.Child("name")));
  KVERN_ASSIGN_OR_RETURN(info.model, ModelOf(header));
  KVERN_RETURN_IF_ERROR(
      CheckLayerIndices(header.layer_indices(), model.num_layers, path.Child("layer_indices")));
  info.layer_indices.assign(header.layer_indices().begin(), header.layer_indices().end());
  if (info.layer_indices.empty()) {
    info.layer_indices.resize(model.num_layers);
    std::iota(info.layer_indices.begin(), info.layer_indices.end(), 0);
  }
  KVERN_ASSIGN_OR_RETURN(info.dtype, FromProto(header.dtype(), path.Child("dtype")));
  info.kv_heads = model.kv_heads;
  info.head_dim = model.head_dim;
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("num_tokens"), header.num_tokens(), 0, limits.tokens_per_sequence));
  info.num_tokens = header.num_tokens();
  info.logical_tokens =
      header.num_logical_tokens() == 0 ? header.num_tokens() : header.num_logical_tokens();
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("num_logical_tokens"), info.logical_tokens,
                                   header.num_tokens(), kMaxPosition));
  KVERN_RETURN_IF_ERROR(CheckEpoch(header.epoch()));
  info.epoch = header.epoch();
  if (!header.positions().values().empty()) {
    const int64_t rows = static_cast<int64_t>(info.layer_indices.size()) * info.kv_heads;
    const PositionRule rule{.tokens = info.num_tokens, .rows = rows, .below = info.logical_tokens};
    KVERN_RETURN_IF_ERROR(CheckPositions(header.positions(), rule, path.Child("positions")));
    info.positions.assign(header.positions().values().begin(), header.positions().values().end());
    info.per_head_positions = header.positions().per_head();
    // A dense sequence holds num_tokens everywhere: its rows have no fills.
    const auto fill = std::find(info.positions.begin(), info.positions.end(), -1);
    if (fill != info.positions.end()) {
      return BadField(path.Child("positions"), "got -1, want a position for every token");
    }
  } else {
    info.positions.resize(info.num_tokens);
    std::iota(info.positions.begin(), info.positions.end(), 0);
  }
  return info;
}

absl::StatusOr<Append> FromProto(const v1::AppendHeader& header, const Limits& limits) {
  const FieldPath path("header");
  Append append;
  KVERN_ASSIGN_OR_RETURN(append.id,
                         ParseName(header.name(), Collection::kSequences, path.Child("name")));
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("num_tokens"), header.num_tokens(), 1, limits.tokens_per_sequence));
  KVERN_RETURN_IF_ERROR(CheckEpoch(header.epoch()));
  append.epoch = header.epoch();
  append.tokens = header.num_tokens();
  const FieldPath positions = path.Child("positions");
  if (header.positions_size() > 0 && header.positions_size() != header.num_tokens()) {
    return BadField(
        positions, absl::StrCat("got ", header.positions_size(), " positions, want one per token, ",
                                header.num_tokens()));
  }
  int64_t previous = -1;
  for (int i = 0; i < header.positions_size(); ++i) {
    if (header.positions(i) <= previous || header.positions(i) == kMaxPosition) {
      return BadField(positions.At(i), absl::StrCat("got ", header.positions(i), " after ",
                                                    previous, ", want ascending positions from 0"));
    }
    previous = header.positions(i);
  }
  append.positions.assign(header.positions().begin(), header.positions().end());
  return append;
}

absl::StatusOr<memory::StoredInfo> AfterAppend(const memory::StoredSequence& before,
                                               const Append& append, const Limits& limits) {
  const memory::StoredInfo& old = before.Info();
  const FieldPath path("header");
  if (append.epoch != old.epoch) {
    return WithReason(absl::AbortedError(absl::StrCat("header.epoch: got ", append.epoch,
                                                      ", want the sequence's ", old.epoch)),
                      "EPOCH_MISMATCH");
  }
  if (before.Packed()) {
    return WithReason(absl::FailedPreconditionError(
                          absl::StrCat("sequences/", old.id, ": got codecs ", old.k_codec, " and ",
                                       old.v_codec, ", want raw16: packed sequences cannot grow")),
                      "SEQUENCE_PACKED");
  }
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("num_tokens"), append.tokens, 1,
                                   limits.tokens_per_sequence - old.num_tokens));
  const int64_t rows = static_cast<int64_t>(old.layer_indices.size()) * old.kv_heads;
  KVERN_RETURN_IF_ERROR(CheckFits(old, append.tokens, limits));
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("num_tokens"), append.tokens, 1, kMaxPosition - old.logical_tokens));
  const std::vector<int32_t> added = NewPositions(append, old.logical_tokens);
  const int64_t last = LastPosition(old.positions);
  if (added.front() <= last) {
    return BadField(path.Child("positions"),
                    absl::StrCat("got ", added.front(), ", want above the last position ", last));
  }
  memory::StoredInfo info = old;
  info.epoch = old.epoch + 1;
  info.num_tokens = old.num_tokens + append.tokens;
  info.logical_tokens =
      std::max<int64_t>(old.logical_tokens + append.tokens, int64_t{added.back()} + 1);
  if (old.lengths.empty() && !old.per_head_positions) {
    info.positions.insert(info.positions.end(), added.begin(), added.end());
    return info;
  }
  info.positions = PerHeadPositions(old, added, rows);
  info.per_head_positions = true;
  for (int32_t& length : info.lengths) length += static_cast<int32_t>(append.tokens);
  return info;
}

}  // namespace kvern::rpc
