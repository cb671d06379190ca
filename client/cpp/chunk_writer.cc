// The generated stub would copy bytes into a message, and the message into buffers of its own, new
// ones each time.
#include "client/cpp/chunk_writer.h"

#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "client/cpp/status_details.h"
#include "google/protobuf/io/coded_stream.h"
#include "grpcpp/channel.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "grpcpp/impl/rpc_method.h"
#include "kernels/base/status_macros.h"

namespace kvern::client {
namespace {

using google::protobuf::io::CodedOutputStream;

constexpr size_t kKeptBuffers = 8;  // what flow control lets gRPC hold at once, more or less
constexpr size_t kMaxHeadBytes = 64;
constexpr uint32_t kLengthDelimited = 2;

// Put and Append number their fields alike.
constexpr int kHeader = v1::PutSequenceRequest::kHeaderFieldNumber;
constexpr int kChunk = v1::PutSequenceRequest::kChunkFieldNumber;
static_assert(kHeader == v1::AppendSequenceRequest::kHeaderFieldNumber);
static_assert(kChunk == v1::AppendSequenceRequest::kChunkFieldNumber);

// Tag and length of a field.
uint8_t* WriteLength(int field, size_t length, uint8_t* to) {
  to = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(field) << 3 | kLengthDelimited,
                                               to);
  return CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(length), to);
}

size_t LengthSize(int field, size_t length) {
  std::array<uint8_t, 16> bytes;
  return static_cast<size_t>(WriteLength(field, length, bytes.data()) - bytes.data());
}

// All of a chunk's message but its data, which is the last field of both.
size_t WriteHead(const v1::Chunk& without_data, size_t bytes, uint8_t* to) {
  uint8_t* const begin = to;
  const size_t fields = without_data.ByteSizeLong();
  to = WriteLength(kChunk, fields + LengthSize(v1::Chunk::kDataFieldNumber, bytes) + bytes, to);
  to = without_data.SerializeWithCachedSizesToArray(to);
  to = WriteLength(v1::Chunk::kDataFieldNumber, bytes, to);
  return static_cast<size_t>(to - begin);
}

}  // namespace

// Buffers of one writer that gRPC does not hold.
class ChunkWriter::Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  Buffers() { free_.reserve(kKeptBuffers); }
  // A new one where gRPC holds all others: it may do so for as long as the server reads nothing.
  std::vector<uint8_t> Take() {
    const absl::MutexLock lock(&mutex_);
    if (free_.empty()) return {};
    std::vector<uint8_t> buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  // A slice of the buffer's first bytes; when gRPC ends its last copy, the buffer comes back.
  grpc::Slice Lend(std::vector<uint8_t> buffer, size_t bytes) {
    auto lent = std::make_unique<Lent>(Lent{shared_from_this(), std::move(buffer)});
    uint8_t* const data = lent->buffer.data();
    return grpc::Slice(data, bytes, &Buffers::Return, lent.release());
  }

 private:
  struct Lent {
    std::shared_ptr<Buffers> to;
    std::vector<uint8_t> buffer;
  };
  static void Return(void* slice) {
    const std::unique_ptr<Lent> lent(static_cast<Lent*>(slice));
    const absl::MutexLock lock(&lent->to->mutex_);
    std::vector<std::vector<uint8_t>>& free = lent->to->free_;
    if (free.size() < kKeptBuffers) free.push_back(std::move(lent->buffer));
  }

  absl::Mutex mutex_;
  std::vector<std::vector<uint8_t>> free_ ABSL_GUARDED_BY(mutex_);
};

ChunkWriter::ChunkWriter(const Client& client, Call call, google::protobuf::MessageLite* response)
    : buffers_(std::make_shared<Buffers>()) {
  client.Prepare(&context_);
  const grpc::internal::RpcMethod method(
      call == Call::kPut ? "/kvern.v1.StoreService/PutSequence"
                         : "/kvern.v1.StoreService/AppendSequence",
      grpc::internal::RpcMethod::CLIENT_STREAMING, client.Channel());
  writer_.reset(grpc::internal::ClientWriterFactory<grpc::ByteBuffer>::Create(
      client.Channel().get(), method, &context_, response));
}

bool ChunkWriter::WriteHeader(const google::protobuf::MessageLite& header) {
  const std::string fields = header.SerializeAsString();
  std::vector<uint8_t> bytes(kMaxHeadBytes + fields.size());
  uint8_t* const end = WriteLength(kHeader, fields.size(), bytes.data());
  std::memcpy(end, fields.data(), fields.size());
  const grpc::Slice slice(bytes.data(), static_cast<size_t>(end - bytes.data()) + fields.size());
  broken_ = broken_ || !writer_->Write(grpc::ByteBuffer(&slice, 1));
  return !broken_;
}

bool ChunkWriter::WriteChunk(v1::Chunk::Part part, int64_t offset,
                             std::span<const std::byte> bytes) {
  KVERN_CHECK(bytes.size() <= kMaxBytes);
  v1::Chunk head;
  head.set_part(part);
  head.set_offset(offset);
  std::vector<uint8_t> buffer = buffers_->Take();
  buffer.resize(kMaxHeadBytes + kMaxBytes);
  const size_t head_bytes = WriteHead(head, bytes.size(), buffer.data());
  if (!bytes.empty()) std::memcpy(buffer.data() + head_bytes, bytes.data(), bytes.size());
  const grpc::Slice slice = buffers_->Lend(std::move(buffer), head_bytes + bytes.size());
  broken_ = broken_ || !writer_->Write(grpc::ByteBuffer(&slice, 1));
  return !broken_;
}

absl::Status ChunkWriter::Finish() {
  if (!broken_) writer_->WritesDone();
  return FromGrpc(writer_->Finish());
}

}  // namespace kvern::client
