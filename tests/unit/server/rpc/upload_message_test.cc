// Upload messages read from buffers cut anywhere: the same as protobuf reads from one piece.
#include "server/rpc/upload_message.h"

#include <grpcpp/support/slice.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace kvern::rpc {
namespace {

grpc::ByteBuffer Cut(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += piece) {
    slices.emplace_back(bytes.data() + at, std::min(piece, bytes.size() - at));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Joined(const ChunkBytes& chunk) {
  std::string bytes;
  for (const std::span<const std::byte> piece : chunk.pieces) {
    bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  return bytes;
}

v1::PutSequenceRequest SomeChunk() {
  v1::PutSequenceRequest request;
  request.mutable_chunk()->set_part(v1::Chunk::PART_V);
  request.mutable_chunk()->set_offset(123456789);
  std::mt19937 random(3);
  for (int i = 0; i < 1000; ++i) request.mutable_chunk()->mutable_data()->push_back(random());
  return request;
}

v1::PutSequenceRequest SomeHeader() {
  v1::PutSequenceRequest request;
  request.mutable_header()->set_name("sequences/a");
  request.mutable_header()->set_num_tokens(77);
  request.mutable_header()->add_layer_indices(3);
  return request;
}

TEST(UploadMessage, ReadsAChunkFromBuffersCutAnywhere) {
  const v1::PutSequenceRequest request = SomeChunk();
  for (const size_t piece : {1, 2, 3, 7, 64, 999, 5000}) {
    grpc::ByteBuffer wire = Cut(request.SerializeAsString(), piece);
    v1::StoredSequence header;
    const auto message = ReadUpload(&wire, &header);
    ASSERT_TRUE(message.ok()) << message.status();
    EXPECT_EQ(message->kind, UploadMessage::Kind::kChunk);
    EXPECT_EQ(message->chunk.part, v1::Chunk::PART_V);
    EXPECT_EQ(message->chunk.offset, 123456789);
    EXPECT_EQ(message->chunk.Size(), 1000);
    EXPECT_EQ(Joined(message->chunk), request.chunk().data()) << "pieces of " << piece;
  }
}

TEST(UploadMessage, ReadsAHeaderOfEitherStream) {
  grpc::ByteBuffer wire = Cut(SomeHeader().SerializeAsString(), 5);
  v1::StoredSequence header;
  const auto message = ReadUpload(&wire, &header);
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->kind, UploadMessage::Kind::kHeader);
  EXPECT_EQ(header.SerializeAsString(), SomeHeader().header().SerializeAsString());

  v1::AppendSequenceRequest append;
  append.mutable_header()->set_num_tokens(9);
  grpc::ByteBuffer append_wire = Cut(append.SerializeAsString(), 1);
  v1::AppendHeader append_header;
  ASSERT_TRUE(ReadUpload(&append_wire, &append_header).ok());
  EXPECT_EQ(append_header.num_tokens(), 9);
}

TEST(UploadMessage, TakesTheLastOfSeveralFieldsAsProtobufDoes) {
  const std::string bytes = SomeHeader().SerializeAsString() + SomeChunk().SerializeAsString();
  grpc::ByteBuffer wire = Cut(bytes, 100);
  v1::StoredSequence header;
  const auto message = ReadUpload(&wire, &header);
  ASSERT_TRUE(message.ok()) << message.status();
  EXPECT_EQ(message->kind, UploadMessage::Kind::kChunk);
  EXPECT_EQ(header.ByteSizeLong(), 0);
  EXPECT_EQ(Joined(message->chunk), SomeChunk().chunk().data());
}

// Whatever the bytes, both readers accept the same and see the same.
TEST(UploadMessage, JudgesAnyBytesAsProtobufDoes) {
  std::mt19937 random(17);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = (round % 2 == 0 ? SomeChunk() : SomeHeader()).SerializeAsString();
    bytes.resize(std::min<size_t>(bytes.size(), 40 + random() % 1000));
    for (int change = random() % 3; change > 0; --change) {
      bytes[random() % std::min<size_t>(bytes.size(), 24)] = static_cast<char>(random());
    }
    v1::PutSequenceRequest want;
    const bool parses = want.ParseFromString(bytes);
    grpc::ByteBuffer wire = Cut(bytes, 1 + random() % 50);
    v1::StoredSequence header;
    const auto message = ReadUpload(&wire, &header);
    ASSERT_EQ(message.ok(), parses) << "round " << round;
    (parses ? accepted : refused) += 1;
    if (!parses) continue;
    EXPECT_EQ(message->kind == UploadMessage::Kind::kChunk, want.has_chunk()) << "round " << round;
    EXPECT_EQ(header.SerializeAsString(), want.header().SerializeAsString());
    EXPECT_EQ(Joined(message->chunk), want.chunk().data());
    EXPECT_EQ(message->chunk.part, want.chunk().part());
    EXPECT_EQ(message->chunk.offset, want.chunk().offset());
  }
  EXPECT_GT(accepted, 100);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace kvern::rpc
