// The wire format read by hand, for one reason: protobuf's own reader copies bytes into a string.
#include "server/rpc/upload_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>

#include "kernels/base/status_macros.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {
namespace {

using google::protobuf::MessageLite;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr uint32_t Tag(int field, WireFormatLite::WireType type) {
  return static_cast<uint32_t>(field) << 3 | static_cast<uint32_t>(type);
}

// Put and Append number their fields alike.
constexpr uint32_t kHeaderTag =
    Tag(v1::PutSequenceRequest::kHeaderFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
constexpr uint32_t kChunkTag =
    Tag(v1::PutSequenceRequest::kChunkFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
static_assert(int{v1::PutSequenceRequest::kHeaderFieldNumber} ==
              int{v1::AppendSequenceRequest::kHeaderFieldNumber});
static_assert(int{v1::PutSequenceRequest::kChunkFieldNumber} ==
              int{v1::AppendSequenceRequest::kChunkFieldNumber});
constexpr uint32_t kPartTag = Tag(v1::Chunk::kPartFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kOffsetTag = Tag(v1::Chunk::kOffsetFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kDataTag =
    Tag(v1::Chunk::kDataFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

// Runs read(coded) inside the length that comes next.
template <class Read>
bool ReadNested(CodedInputStream* coded, Read&& read) {
  uint32_t length = 0;
  if (!coded->ReadVarint32(&length) || length > INT32_MAX) return false;
  const CodedInputStream::Limit outer = coded->PushLimit(static_cast<int>(length));
  if (coded->BytesUntilLimit() != static_cast<int>(length)) return false;  // longer than the outer
  const bool read_all = read(coded) && coded->BytesUntilLimit() == 0;
  coded->PopLimit(outer);
  return read_all;
}

// Points at `length` bytes from here on and skips them.
bool ReadPieces(CodedInputStream* coded, ScratchVector<std::span<const std::byte>>* pieces) {
  uint32_t length = 0;
  if (!coded->ReadVarint32(&length) || length > INT32_MAX) return false;
  if (coded->BytesUntilLimit() < static_cast<int>(length)) return false;
  pieces->clear();
  int left = static_cast<int>(length);
  while (left > 0) {
    const void* data = nullptr;
    int size = 0;
    if (!coded->GetDirectBufferPointer(&data, &size)) return false;
    size = std::min(size, left);
    pieces->push_back({static_cast<const std::byte*>(data), static_cast<size_t>(size)});
    if (!coded->Skip(size)) return false;
    left -= size;
  }
  return true;
}

bool ReadChunk(CodedInputStream* coded, ChunkBytes* chunk) {
  while (const uint32_t tag = coded->ReadTag()) {
    uint64_t value = 0;
    if (tag == kDataTag) {
      if (!ReadPieces(coded, &chunk->pieces)) return false;
    } else if (tag == kPartTag) {
      if (!coded->ReadVarint64(&value)) return false;
      // Open as all enums of proto3: whoever uses it judges it.
      chunk->part = static_cast<v1::Chunk::Part>(static_cast<int32_t>(value));
    } else if (tag == kOffsetTag) {
      if (!coded->ReadVarint64(&value)) return false;
      chunk->offset = static_cast<int64_t>(value);
    } else if (!WireFormatLite::SkipField(coded, tag)) {
      return false;
    }
  }
  return coded->ConsumedEntireMessage();
}

bool Read(CodedInputStream* coded, MessageLite* header, UploadMessage* message) {
  while (const uint32_t tag = coded->ReadTag()) {
    if (tag == kHeaderTag) {
      // One of both: setting it clears the other.
      message->kind = UploadMessage::Kind::kHeader;
      message->chunk = ChunkBytes();
      if (!ReadNested(coded, [header](CodedInputStream* nested) {
            return header->MergePartialFromCodedStream(nested) && nested->ConsumedEntireMessage();
          })) {
        return false;
      }
    } else if (tag == kChunkTag) {
      message->kind = UploadMessage::Kind::kChunk;
      header->Clear();
      if (!ReadNested(coded, [message](CodedInputStream* nested) {
            return ReadChunk(nested, &message->chunk);
          })) {
        return false;
      }
    } else if (!WireFormatLite::SkipField(coded, tag)) {
      return false;
    }
  }
  return coded->ConsumedEntireMessage();
}

}  // namespace

int64_t ChunkBytes::Size() const {
  int64_t bytes = 0;
  for (const std::span<const std::byte> piece : pieces) bytes += std::ssize(piece);
  return bytes;
}

absl::StatusOr<UploadMessage> ReadUpload(grpc::ByteBuffer* wire, MessageLite* header) {
  header->Clear();
  UploadMessage message;
  grpc::ProtoBufferReader reader(wire);
  CodedInputStream coded(&reader);
  coded.SetTotalBytesLimit(INT32_MAX);  // gRPC bounds the message
  if (reader.status().ok() && Read(&coded, header, &message)) return message;
  return BadField(FieldPath("message"), "got bytes that do not parse, want one of the stream's");
}

}  // namespace kvern::rpc
