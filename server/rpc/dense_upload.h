// Chunks of keys and values on their way into a sequence that is not yet published.
#ifndef KVERN_SERVER_RPC_DENSE_UPLOAD_H_
#define KVERN_SERVER_RPC_DENSE_UPLOAD_H_

#include <cstdint>

#include "absl/status/status.h"
#include "server/rpc/dense_bytes.h"
#include "server/rpc/upload_message.h"

namespace kvern::rpc {

inline constexpr int64_t kMaxChunkBytes = int64_t{4} << 20;

class DenseUpload {
 public:
  DenseUpload(DenseBytes keys, DenseBytes values);
  // Errors: InvalidArgument for an unknown part, a gap, too large a chunk or more bytes than the
  // header announced; of the memory written to.
  absl::Status Add(const ChunkBytes& chunk);
  // Errors: InvalidArgument when bytes are missing.
  absl::Status CheckComplete() const;

 private:
  struct Part {
    DenseBytes target;
    int64_t received_bytes = 0;
  };
  Part keys_;
  Part values_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_DENSE_UPLOAD_H_
