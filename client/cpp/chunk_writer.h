// The sending side of an upload: bytes are copied once, into buffers that gRPC sends from and gives
// back.
#ifndef KVERN_CLIENT_CPP_CHUNK_WRITER_H_
#define KVERN_CLIENT_CPP_CHUNK_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "client/cpp/client.h"
#include "google/protobuf/message_lite.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/sync_stream.h"
#include "kvern/v1/store.pb.h"

namespace kvern::client {

// One PutSequence or AppendSequence, whose messages have their fields in common. One thread.
class ChunkWriter {
 public:
  enum class Call { kPut, kAppend };
  // `response` outlives the writer.
  ChunkWriter(const Client& client, Call call, google::protobuf::MessageLite* response);
  ChunkWriter(const ChunkWriter&) = delete;
  ChunkWriter& operator=(const ChunkWriter&) = delete;

  static constexpr size_t kMaxBytes = size_t{1} << 20;  // of one chunk

  // False: the call broke, and Finish knows why. The bytes are not read after the return.
  bool WriteHeader(const google::protobuf::MessageLite& header);
  bool WriteChunk(v1::Chunk::Part part, int64_t offset, std::span<const std::byte> bytes);
  // No more will be written; waits for the response. Errors: of the call.
  absl::Status Finish();

 private:
  class Buffers;

  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> writer_;
  std::shared_ptr<Buffers> buffers_;  // gRPC may hold some longer than this
  bool broken_ = false;
};

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_CHUNK_WRITER_H_
