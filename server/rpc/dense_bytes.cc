// A byte offset is a row and a place in it; neighbouring rows of one block move in one copy.
#include "server/rpc/dense_bytes.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/base/status_macros.h"

namespace kvern::rpc {

DenseBytes::DenseBytes(std::vector<KvRef> layers, const memory::ByteAccess& access)
    : DenseBytes(std::move(layers), access, /*tokens=*/-1) {}

DenseBytes::DenseBytes(std::vector<KvRef> layers, const memory::ByteAccess& access, int64_t tokens)
    : layers_(std::move(layers)),
      access_(access),
      tokens_(tokens >= 0 || layers_.empty() ? std::max<int64_t>(tokens, 0) : layers_[0].tokens),
      tail_(tokens >= 0) {
  if (layers_.empty()) return;
  for (const KvRef& layer : layers_) KVERN_CHECK(layer.HasContiguousRows());
  row_bytes_ = layers_[0].head_dim * SizeOf(layers_[0].dtype);
  // No overflow: the memory exists.
  size_ = static_cast<int64_t>(layers_.size()) * layers_[0].kv_heads * tokens_ * row_bytes_;
}

DenseBytes::Run DenseBytes::RunAt(int64_t offset, int64_t bytes) const {
  const int64_t row = offset / row_bytes_;
  const int64_t in_row = offset % row_bytes_;
  const int64_t token = row % tokens_;
  const int64_t head = row / tokens_ % layers_[0].kv_heads;
  const KvRef& layer = layers_[row / tokens_ / layers_[0].kv_heads];
  const int64_t length = layer.Length(head);
  const int64_t slot = tail_ ? length - tokens_ + token : token;
  const int64_t rest_of_head = (tokens_ - token) * row_bytes_ - in_row;
  if (slot >= length) return {nullptr, std::min(bytes, rest_of_head)};
  int64_t rows = 1;
  if (layer.strides.token == row_bytes_) {
    rows = std::min(layer.block_tokens - slot % layer.block_tokens, length - slot);
  }
  return {layer.Address(head, slot) + in_row, std::min(bytes, rows * row_bytes_ - in_row)};
}

absl::Status DenseBytes::Write(int64_t offset, std::span<const std::byte> bytes) const {
  while (!bytes.empty()) {
    const Run run = RunAt(offset, static_cast<int64_t>(bytes.size()));
    KVERN_CHECK(run.data != nullptr);  // what is written has all tokens or is a tail
    KVERN_RETURN_IF_ERROR(access_.CopyIn(bytes.first(run.bytes), run.data));
    bytes = bytes.subspan(run.bytes);
    offset += run.bytes;
  }
  return absl::OkStatus();
}

absl::Status DenseBytes::Read(int64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const Run run = RunAt(offset, static_cast<int64_t>(bytes.size()));
    if (run.data == nullptr) {
      std::memset(bytes.data(), 0, run.bytes);
    } else {
      KVERN_RETURN_IF_ERROR(access_.CopyOut(run.data, bytes.first(run.bytes)));
    }
    bytes = bytes.subspan(run.bytes);
    offset += run.bytes;
  }
  return absl::OkStatus();
}

void CopyTokens(const std::vector<KvRef>& from, const std::vector<KvRef>& to) {
  for (size_t layer = 0; layer < from.size(); ++layer) {
    const KvRef& source = from[layer];
    KVERN_CHECK(source.HasContiguousRows() && to[layer].HasContiguousRows());
    const int64_t row_bytes = source.head_dim * SizeOf(source.dtype);
    for (int64_t head = 0; head < source.kv_heads; ++head) {
      for (int64_t token = 0; token < source.Length(head); ++token) {
        std::memcpy(to[layer].Address(head, token), source.Address(head, token), row_bytes);
      }
    }
  }
}

}  // namespace kvern::rpc
