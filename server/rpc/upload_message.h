// A message of an upload, read where gRPC received it: the bytes of its chunk are not copied.
#ifndef KVERN_SERVER_RPC_UPLOAD_MESSAGE_H_
#define KVERN_SERVER_RPC_UPLOAD_MESSAGE_H_

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/base/reuse.h"
#include "kvern/v1/store.pb.h"

namespace kvern::rpc {

// Bytes of one part, in order.
struct ChunkBytes {
  v1::Chunk::Part part = v1::Chunk::PART_UNSPECIFIED;
  int64_t offset = 0;
  ScratchVector<std::span<const std::byte>> pieces;
  int64_t Size() const;
};

struct UploadMessage {
  enum class Kind : uint8_t { kNone, kHeader, kChunk };
  Kind kind = Kind::kNone;
  ChunkBytes chunk;  // kChunk
};

// Reads a PutSequenceRequest or an AppendSequenceRequest: field 1 into `header`, which it clears,
// field 2 as a view of `wire`, which outlives the view. Errors: InvalidArgument for bytes that are
// no such message.
absl::StatusOr<UploadMessage> ReadUpload(grpc::ByteBuffer* wire,
                                         google::protobuf::MessageLite* header);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_UPLOAD_MESSAGE_H_
