// All tokens of one role to packed blocks and back.
#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "client/cli/bench/ops.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/codec.h"

namespace kvern::bench {
namespace {

// Blocks start where memory of their alignment does, as in a store.
struct alignas(kPackedBlockAlign) PackedUnit {
  std::byte bytes[kPackedBlockAlign];
};

class Coded {
 public:
  Coded(const Setting& at, CodecSpec codec, Role role)
      : at_(at),
        codec_(codec),
        role_(role),
        mean_(at.shape().kv_heads * at.shape().head_dim, FromFloat<Float16>(0.1f)),
        out_(at.shape(), at.shape().tokens) {
    KeepEverything();
    PlanTable();
  }

  // `packed_` need not be zeroed again: the same rows give the same bytes.
  absl::Status Encode() {
    EncodeCounts counts;
    return at_.backend->Encode({Source(), &keep_, table_, Mean(), &at_.layer->rotation, Packed()},
                               &counts);
  }
  absl::Status Decode() {
    return at_.backend->Decode({Packed(), table_, Mean(), &at_.layer->rotation, out_.refs()});
  }
  // Rows as they are, codes and scales, and the angles where a mean turns with the keys.
  int64_t FloorBytes() const {
    const Shape& shape = at_.shape();
    const bool turns = (codec_.flags & kFlagRopeMean) != 0;
    return shape.KeyBytes() + static_cast<int64_t>(packed_.size() * sizeof(PackedUnit)) +
           (turns ? shape.AngleBytes() : 0);
  }

 private:
  LayerRefs Source() const {
    return role_ == Role::kKey ? at_.layer->keys.refs() : at_.layer->values.refs();
  }
  TensorView<const Float16, 3> Mean() const {
    return DenseView(mean_.data(), int64_t{1}, at_.shape().kv_heads, at_.shape().head_dim);
  }
  std::span<std::byte> Packed() { return std::as_writable_bytes(std::span(packed_)); }
  void KeepEverything() {
    const Shape& shape = at_.shape();
    const std::vector<int32_t> counts(shape.kv_heads, static_cast<int32_t>(shape.tokens));
    keep_ = KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, shape.kv_heads));
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      std::iota(keep_.Row(0, head), keep_.Row(0, head) + shape.tokens, 0);
    }
  }
  void PlanTable() {
    const Shape& shape = at_.shape();
    int64_t bytes = 0;
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      for (int64_t slot = 0; slot < shape.tokens; slot += kPackedBlockTokens) {
        PackedRow row = {};
        row.kv_head = head;
        row.role = static_cast<int64_t>(role_);
        row.first_slot = slot;
        row.tokens = std::min<int64_t>(kPackedBlockTokens, shape.tokens - slot);
        const CodecSpec codec = CodecOfBlock(codec_, row.tokens);
        row.codec = static_cast<int64_t>(codec.id);
        row.flags = codec.flags;
        row.byte_offset = bytes;
        bytes += AlignUp(BlockBytes(codec.id, shape.dtype, row.tokens, shape.head_dim),
                         kPackedBlockAlign);
        table_.push_back(row);
      }
    }
    packed_.resize(bytes / kPackedBlockAlign);
  }

  const Setting at_;
  const CodecSpec codec_;
  const Role role_;
  KeepList keep_;
  std::vector<PackedRow> table_;
  std::vector<PackedUnit> packed_;
  std::vector<Float16> mean_;
  PagedRows out_;
};

absl::StatusOr<std::shared_ptr<Coded>> Make(const Setting& at, absl::string_view codec, Role role) {
  KVERN_ASSIGN_OR_RETURN(const CodecSpec spec, pipeline::ParseCodec(codec, role));
  return std::make_shared<Coded>(at, spec, role);
}

}  // namespace

absl::StatusOr<PreparedOp> PrepareEncode(const Setting& at, absl::string_view codec, Role role) {
  KVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Coded> coded, Make(at, codec, role));
  return PreparedOp{[coded] { return coded->Encode(); }, coded->FloorBytes()};
}

absl::StatusOr<PreparedOp> PrepareDecode(const Setting& at, absl::string_view codec, Role role) {
  KVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Coded> coded, Make(at, codec, role));
  KVERN_RETURN_IF_ERROR(coded->Encode());
  return PreparedOp{[coded] { return coded->Decode(); }, coded->FloorBytes()};
}

}  // namespace kvern::bench
