// One dense tensor [layers, kv_heads, tokens, head_dim] as a stream of bytes over paged memory.
#ifndef KVERN_SERVER_RPC_DENSE_BYTES_H_
#define KVERN_SERVER_RPC_DENSE_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/kv_ref.h"
#include "server/memory/byte_access.h"

namespace kvern::rpc {

// Borrows the memory behind the views, which `access` reaches; rows of head_dim must be contiguous
// (the store's are).
class DenseBytes {
 public:
  // All tokens of every head.
  DenseBytes(std::vector<KvRef> layers, const memory::ByteAccess& access);
  // Only the last `tokens` of each head: what an append writes.
  DenseBytes(std::vector<KvRef> layers, const memory::ByteAccess& access, int64_t tokens);

  int64_t Size() const { return size_; }
  // [offset, offset + bytes.size()) lies in [0, Size()). Offsets may fall anywhere, inside an
  // element too. Errors: of `access`.
  absl::Status Write(int64_t offset, std::span<const std::byte> bytes) const;
  // Slots beyond a head's length read as zero.
  absl::Status Read(int64_t offset, std::span<std::byte> bytes) const;

 private:
  // Contiguous bytes of one head; null: beyond its length.
  struct Run {
    std::byte* data;
    int64_t bytes;
  };
  Run RunAt(int64_t offset, int64_t bytes) const;

  const std::vector<KvRef> layers_;
  const memory::ByteAccess& access_;
  const int64_t tokens_;
  const bool tail_;
  int64_t row_bytes_ = 0;
  int64_t size_ = 0;
};

// Copies the tokens that `from` holds into the first slots of `to`, head by head, in host memory.
void CopyTokens(const std::vector<KvRef>& from, const std::vector<KvRef>& to);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_DENSE_BYTES_H_
