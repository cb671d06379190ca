// A packed table may come from a file: it is walked in the one order a writer makes, and what is
// not where that order wants it is refused before a byte is read through it.
#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/codec.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/rotation.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kMinHeadDim = 8;
constexpr int64_t kMaxHeadDim = 1024;

absl::Status Wrong(absl::string_view what, int64_t got, int64_t want) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": got ", got, ", want ", want));
}

absl::Status CheckModel(const ModelSpec& model) {
  if (model.kv_heads < 1) return Wrong("kv_heads", model.kv_heads, 1);
  const int64_t head_dim = model.head_dim;
  if (head_dim < kMinHeadDim || head_dim > kMaxHeadDim || head_dim % kMinHeadDim != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "head_dim: got ", head_dim, ", want a multiple of 8 in ", kMinHeadDim, "..", kMaxHeadDim));
  }
  if (2 * int64_t{model.rope.Bands()} > head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope: got ", model.rope.Bands(), " bands, want at most ", head_dim / 2));
  }
  return absl::OkStatus();
}

absl::Status CheckViews(const ModelSpec& model, const PackedView& packed,
                        const std::vector<KvRef>& views) {
  for (const KvRef& view : views) {
    if (view.kv_heads != model.kv_heads) return Wrong("kv_heads", view.kv_heads, model.kv_heads);
    if (view.head_dim != model.head_dim) return Wrong("head_dim", view.head_dim, model.head_dim);
    if (view.dtype != packed.dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("dtype: got ", Name(view.dtype), ", want ", Name(packed.dtype)));
    }
  }
  return absl::OkStatus();
}

// Tokens of each (layer, kv_head) by their positions: ascending, then -1 to the end of the row.
absl::StatusOr<std::vector<int64_t>> CountsOf(const std::vector<int32_t>& positions, int64_t rows) {
  const int64_t size = static_cast<int64_t>(positions.size());
  if (rows == 0 ? size != 0 : size % rows != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("positions: got ", size, " values, want a multiple of ", rows, " rows"));
  }
  std::vector<int64_t> counts(rows, 0);
  const int64_t max_kept = rows == 0 ? 0 : size / rows;
  for (int64_t at = 0; at < size; ++at) {
    const int64_t row = at / max_kept, slot = at % max_kept;
    if (positions[at] == -1) continue;
    if (slot != counts[row] || positions[at] < 0 ||
        (slot > 0 && positions[at] <= positions[at - 1])) {
      return absl::InvalidArgumentError(absl::StrCat("positions: got ", positions[at], " in row ",
                                                     row, " slot ", slot,
                                                     ", want them ascending from 0, then -1"));
    }
    ++counts[row];
  }
  return counts;
}

// Rows of one (role, layer, kv_head) are consumed slot by slot.
class TableWalk {
 public:
  TableWalk(const ModelSpec& model, const PackedView& packed) : model_(model), packed_(packed) {}

  // `where` names role, layer and kv_head.
  absl::Status Consume(const PackedRow& where, int64_t count) {
    for (int64_t slot = 0; slot < count; slot += packed_.table[next_++].tokens) {
      if (next_ == packed_.table.size()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "packed_table: got ", next_, " rows, want one more for layer ", where.layer,
            " kv_head ", where.kv_head, " role ", where.role, " slot ", slot));
      }
      PackedRow want = where;
      want.first_slot = slot;
      want.tokens = count - slot;
      KVERN_RETURN_IF_ERROR(CheckPlace(want));
      KVERN_RETURN_IF_ERROR(CheckCodec());
      KVERN_RETURN_IF_ERROR(CheckBytes());
    }
    return absl::OkStatus();
  }

  absl::Status AtEnd() const {
    const int64_t rows = static_cast<int64_t>(packed_.table.size());
    return next_ == packed_.table.size() ? absl::OkStatus()
                                         : Wrong("packed_table rows", rows, next_);
  }
  size_t consumed() const { return next_; }
  bool uses_mean() const { return uses_mean_; }

 private:
  const PackedRow& Current() const { return packed_.table[next_]; }
  absl::Status WrongColumn(absl::string_view column, int64_t got, int64_t want) const {
    return Wrong(absl::StrCat("packed_table row ", next_, " ", column), got, want);
  }

  absl::Status CheckPlace(const PackedRow& want) const {
    const PackedRow& row = Current();
    if (row.role != want.role) return WrongColumn("role", row.role, want.role);
    if (row.layer != want.layer) return WrongColumn("layer", row.layer, want.layer);
    if (row.kv_head != want.kv_head) return WrongColumn("kv_head", row.kv_head, want.kv_head);
    if (row.first_slot != want.first_slot) {
      return WrongColumn("first_slot", row.first_slot, want.first_slot);
    }
    const int64_t most = std::min<int64_t>(want.tokens, kPackedBlockTokens);
    if (row.tokens < 1 || row.tokens > most) {
      return absl::InvalidArgumentError(absl::StrCat("packed_table row ", next_, " tokens: got ",
                                                     row.tokens, ", want 1..", most));
    }
    return absl::OkStatus();
  }

  absl::Status CheckCodec() {
    const PackedRow& row = Current();
    const CodecEntry* entry = nullptr;
    for (const CodecEntry& known : Codecs()) {
      if (static_cast<int64_t>(known.id) == row.codec) entry = &known;
    }
    if (entry == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("packed_table row ", next_, " codec: got ",
                                                     row.codec, ", want one that is known"));
    }
    const Role role = static_cast<Role>(row.role);
    if (!entry->Takes(role) || (NeedsFullBlock(entry->id) && row.tokens != kPackedBlockTokens)) {
      return absl::InvalidArgumentError(
          absl::StrCat("packed_table row ", next_, " codec: got ", entry->info.name, " for role ",
                       row.role, " and ", row.tokens, " tokens, want another there"));
    }
    const int64_t needs = AlwaysRotates(entry->id) ? kFlagHadamard : 0;
    const bool mean = entry->takes_rope_mean && role == Role::kKey;
    const int64_t takes =
        needs | (entry->takes_hadamard ? kFlagHadamard : 0) | (mean ? kFlagRopeMean : 0);
    if ((row.flags & ~takes) != 0 || (row.flags & needs) != needs) {
      return absl::InvalidArgumentError(absl::StrCat("packed_table row ", next_, " flags: got ",
                                                     row.flags, ", want those of ", takes, " with ",
                                                     needs, " for codec ", entry->info.name));
    }
    uses_mean_ |= (row.flags & kFlagRopeMean) != 0;
    return absl::OkStatus();
  }

  // Offsets ascend past the block before, so no two blocks overlap.
  absl::Status CheckBytes() {
    const PackedRow& row = Current();
    const int64_t size = static_cast<int64_t>(packed_.blocks.size());
    const int64_t bytes =
        BlockBytes(static_cast<CodecId>(row.codec), packed_.dtype, row.tokens, model_.head_dim);
    if (row.byte_offset % kPackedBlockAlign != 0 || row.byte_offset < end_ ||
        row.byte_offset > size || bytes > size - row.byte_offset) {
      return absl::InvalidArgumentError(absl::StrCat(
          "packed_table row ", next_, " byte_offset: got ", row.byte_offset, " for ", bytes,
          " bytes, want a multiple of ", kPackedBlockAlign, " from ", end_, " to ", size - bytes));
    }
    end_ = row.byte_offset + bytes;
    return absl::OkStatus();
  }

  const ModelSpec& model_;
  const PackedView packed_;
  size_t next_ = 0;
  int64_t end_ = 0;  // of the block before
  bool uses_mean_ = false;
};

absl::Status CheckMeanKey(const ModelSpec& model, const PackedView& packed, int64_t rows) {
  const int64_t got = static_cast<int64_t>(packed.mean_key.size());
  if (got != rows * model.head_dim) return Wrong("packed_mu values", got, rows * model.head_dim);
  if (model.rope.Bands() > 0) return absl::OkStatus();
  return WithReason(absl::FailedPreconditionError(
                        "rope: got none, want inverse frequencies to add the mean key back"),
                    "ROPE_UNKNOWN");
}

class Unpacker {
 public:
  Unpacker(const ModelSpec& model, const PackedView& packed, const UnpackTarget& target)
      : model_(model), packed_(packed), target_(target) {}

  absl::Status Check(const std::vector<int32_t>& positions) {
    KVERN_RETURN_IF_ERROR(CheckModel(model_));
    if (target_.values.size() != target_.keys.size()) {
      return Wrong("layers of v", static_cast<int64_t>(target_.values.size()), Layers());
    }
    KVERN_RETURN_IF_ERROR(CheckViews(model_, packed_, target_.keys));
    KVERN_RETURN_IF_ERROR(CheckViews(model_, packed_, target_.values));
    KVERN_ASSIGN_OR_RETURN(counts_, CountsOf(positions, Rows()));
    KVERN_RETURN_IF_ERROR(CheckRoom());
    TableWalk walk(model_, packed_);
    KVERN_RETURN_IF_ERROR(ConsumeRole(Role::kKey, &walk));
    key_rows_ = walk.consumed();
    KVERN_RETURN_IF_ERROR(ConsumeRole(Role::kValue, &walk));
    KVERN_RETURN_IF_ERROR(walk.AtEnd());
    if (!walk.uses_mean()) return absl::OkStatus();
    KVERN_RETURN_IF_ERROR(CheckMeanKey(model_, packed_, Rows()));
    rotation_ =
        BuildRotation(model_.rope, {.positions = positions,
                                    .kv_heads = model_.kv_heads,
                                    .tokens = static_cast<int64_t>(positions.size()) / Rows()});
    return absl::OkStatus();
  }

  absl::Status Decode(Backend& backend) const {
    TensorView<const Float16, 3> mean;
    if (rotation_) {
      mean = DenseView(packed_.mean_key.data(), Layers(), int64_t{model_.kv_heads},
                       int64_t{model_.head_dim});
    }
    const std::span<const PackedRow> table = packed_.table;
    const DecodeArgs roles[] = {{.packed = packed_.blocks,
                                 .table = table.first(key_rows_),
                                 .mean_key = mean,
                                 .rotation = rotation_ ? &*rotation_ : nullptr,
                                 .rows = target_.keys},
                                {.packed = packed_.blocks,
                                 .table = table.subspan(key_rows_),
                                 .mean_key = {},
                                 .rotation = nullptr,
                                 .rows = target_.values}};
    return backend.Decode(std::span<const DecodeArgs>(roles));
  }

 private:
  int64_t Layers() const { return static_cast<int64_t>(target_.keys.size()); }
  int64_t Rows() const { return Layers() * model_.kv_heads; }

  absl::Status CheckRoom() const {
    for (int64_t row = 0; row < Rows(); ++row) {
      const int64_t layer = row / model_.kv_heads;
      const int64_t room = std::min(target_.keys[layer].tokens, target_.values[layer].tokens);
      if (counts_[row] > room) return Wrong("tokens of the target", room, counts_[row]);
    }
    return absl::OkStatus();
  }

  absl::Status ConsumeRole(Role role, TableWalk* walk) const {
    PackedRow where{};
    where.role = static_cast<int64_t>(role);
    for (int64_t row = 0; row < Rows(); ++row) {
      where.layer = row / model_.kv_heads;
      where.kv_head = row % model_.kv_heads;
      KVERN_RETURN_IF_ERROR(walk->Consume(where, counts_[row]));
    }
    return absl::OkStatus();
  }

  const ModelSpec& model_;
  const PackedView packed_;
  const UnpackTarget& target_;
  std::vector<int64_t> counts_;  // [layers, kv_heads]
  size_t key_rows_ = 0;          // rows of the table that are keys
  std::optional<RotationTable> rotation_;
};

}  // namespace

absl::Status Unpack(Backend& backend, const ModelSpec& model, const PackedView& packed,
                    const std::vector<int32_t>& positions, const UnpackTarget& target) {
  Unpacker unpacker(model, packed, target);
  KVERN_RETURN_IF_ERROR(unpacker.Check(positions));
  return unpacker.Decode(backend);
}

}  // namespace kvern::pipeline
