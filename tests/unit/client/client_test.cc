// The client against a scripted server on a Unix socket.
#include "client/cpp/client.h"

#include <cstring>

#include "client/cpp/upload.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/small_cache.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::client {
namespace {

using ::testing::HasSubstr;

class ClientTest : public TemporaryFiles {
 protected:
  ClientTest() : server(PathOf("k.sock")) {}
  Client Connect() { return *Client::Connect("unix:" + PathOf("k.sock")); }
  FakeServer server;
};

TEST(ClientConnect, SaysAtOnceThatNobodyListens) {
  const auto client = Client::Connect("unix:/nonexistent/kvern.sock");
  EXPECT_TRUE(absl::IsUnavailable(client.status())) << client.status();
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("/nonexistent/kvern.sock"));
}

TEST(ClientConnect, NamesATlsFileThatCannotBeRead) {
  const auto client = Client::Connect("127.0.0.1:1", {.tls = {.ca = "/nonexistent/ca.pem"}});
  EXPECT_TRUE(absl::IsInvalidArgument(client.status()));
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("/nonexistent/ca.pem"));
}

TEST_F(ClientTest, PingsAServerThatServes) { EXPECT_TRUE(Connect().Ping().ok()); }

TEST_F(ClientTest, CallsAServerThatDoesNotServeUnavailable) {
  server.server->GetHealthCheckService()->SetServingStatus(false);
  EXPECT_TRUE(absl::IsUnavailable(Connect().Ping()));
}

TEST_F(ClientTest, DecodesTheDetailsOfARefusal) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  info.set_reason("MODEL_IN_USE");
  details.add_details()->PackFrom(info);
  server.refusal =
      grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "in use", details.SerializeAsString());
  const absl::Status status = Connect().DeleteModel("models/a");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_EQ(ReasonOf(status), "MODEL_IN_USE");
}

TEST_F(ClientTest, PutsEveryByteInChunksWithinTheLimit) {
  const SmallCache cache(20000);  // 2.5 MiB of keys
  std::vector<int64_t> done;
  const auto stored =
      PutSequence(Connect(), {}, {SmallCache::Bytes(cache.k), SmallCache::Bytes(cache.v), 20000},
                  [&](int64_t bytes, int64_t) { done.push_back(bytes); });
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->num_tokens(), 20000);
  ASSERT_EQ(server.put_k.size(), cache.k.size() * sizeof(float));
  EXPECT_EQ(std::memcmp(server.put_k.data(), cache.k.data(), server.put_k.size()), 0);
  EXPECT_EQ(std::memcmp(server.put_v.data(), cache.v.data(), server.put_v.size()), 0);
  EXPECT_LE(server.largest_chunk, size_t{4} << 20);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(static_cast<size_t>(done.back()), 2 * server.put_k.size());
}

TEST_F(ClientTest, TellsWhyAnUploadWasCutShort) {
  server.refusal = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "store is full");
  const SmallCache cache(20000);
  const auto stored = PutSequence(
      Connect(), {}, {SmallCache::Bytes(cache.k), SmallCache::Bytes(cache.v), 20000}, nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(stored.status())) << stored.status();
  EXPECT_EQ(stored.status().message(), "store is full");
}

v1::FetchSequenceResponse ChunkOf(v1::Chunk::Part part, int64_t offset, const std::string& data) {
  v1::FetchSequenceResponse message;
  message.mutable_chunk()->set_part(part);
  message.mutable_chunk()->set_offset(offset);
  message.mutable_chunk()->set_data(data);
  return message;
}

TEST_F(ClientTest, JoinsTheChunksOfAFetch) {
  server.fetch.resize(1);
  server.fetch[0].mutable_header()->set_dense_bytes(4);
  server.fetch.push_back(ChunkOf(v1::Chunk::PART_K, 0, "ab"));
  server.fetch.push_back(ChunkOf(v1::Chunk::PART_K, 2, "cd"));
  server.fetch.push_back(ChunkOf(v1::Chunk::PART_V, 0, "efgh"));
  const auto fetched = FetchSequence(Connect(), "sequences/a", FetchForm::kAsStored, nullptr);
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fetched->k, "abcd");
  EXPECT_EQ(fetched->v, "efgh");
}

TEST_F(ClientTest, CallsAFetchWithAGapDataLoss) {
  server.fetch.resize(1);
  server.fetch[0].mutable_header()->set_packed_bytes(4);
  server.fetch.push_back(ChunkOf(v1::Chunk::PART_PACKED, 1, "abcd"));
  EXPECT_TRUE(absl::IsDataLoss(
      FetchSequence(Connect(), "sequences/a", FetchForm::kAsStored, nullptr).status()));
}

TEST_F(ClientTest, CallsAFetchThatEndsEarlyDataLoss) {
  server.fetch.resize(1);
  server.fetch[0].mutable_header()->set_packed_bytes(4);
  server.fetch.push_back(ChunkOf(v1::Chunk::PART_PACKED, 0, "abc"));
  EXPECT_TRUE(absl::IsDataLoss(
      FetchSequence(Connect(), "sequences/a", FetchForm::kAsStored, nullptr).status()));
}

TEST_F(ClientTest, UploadsACalibrationOnce) {
  const std::string text = "abc";
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  const Client client = Connect();
  ASSERT_TRUE(ImportCalibration(client, bytes, nullptr).ok());
  EXPECT_EQ(server.artifact, "abc");
  EXPECT_EQ(server.sha256.size(), 32u);
  // FIPS 180-4, example of one block.
  const std::string name =
      "calibrations/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  EXPECT_EQ(CalibrationName(bytes), name);
  server.models.add_calibrations()->set_name(name);
  const auto again = ImportCalibration(client, bytes, nullptr);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, name);
  EXPECT_EQ(server.imports, 1);
}

}  // namespace
}  // namespace kvern::client
