// Shared pools: sealed memory, a described layout, blocks that keep their bytes.
#include "client/cpp/shared_pool.h"

#include <cstring>

#include "client/cpp/broker_connection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/client/fake_broker.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/small_cache.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::client {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class SharedPoolTest : public TemporaryFiles {
 protected:
  SharedPoolTest() : server(PathOf("k.sock")) {
    server.info.set_broker_address("unix:/seen/by/the/server.broker.sock");
  }
  Client Connect() { return *Client::Connect("unix:" + PathOf("k.sock")); }
  SharedPoolOptions Options() const {
    return {.model = "models/m",
            .dtype = DType::kF32,
            .kv_heads = 2,
            .head_dim = 8,
            .layers = {0, 3},
            .block_tokens = 2,
            .num_blocks = 6};
  }
  FakeServer server;
};

TEST_F(SharedPoolTest, HandsOverSealedMemoryAndDescribesIt) {
  FakeBroker broker(PathOf("k.broker.sock"));
  {
    const auto pool = SharedPool::Create(Connect(), Options());
    ASSERT_TRUE(pool.ok()) << pool.status();
    EXPECT_EQ(pool->Name(), "pools/1");
    EXPECT_EQ(broker.magic, "KVA1");
    EXPECT_EQ(broker.seals & (F_SEAL_SHRINK | F_SEAL_GROW), F_SEAL_SHRINK | F_SEAL_GROW);
    EXPECT_EQ(broker.memory_bytes, 2u * 2 * 6 * 2 * 2 * 8 * 4);
    EXPECT_EQ(server.pool.regions(0).attachment_id(), std::string(16, 'i'));
    ASSERT_EQ(server.pool.layers_size(), 2);
    EXPECT_EQ(server.pool.layers(1).layer(), 3);
    EXPECT_EQ(server.pool.layers(1).k().base_offset(), 2 * 6 * 2 * 2 * 8 * 4);
    EXPECT_EQ(server.pool.layers(0).v().dim_stride(), 4);
    EXPECT_THAT(server.unregistered, IsEmpty());
  }
  EXPECT_THAT(server.unregistered, ElementsAre("pools/1"));
  broker.Join();  // ends when the socket closed
}

TEST_F(SharedPoolTest, GivesBackWhatWasWrittenWhateverTheBlockOrder) {
  FakeBroker broker(PathOf("k.broker.sock"));
  auto pool = SharedPool::Create(Connect(), Options());
  ASSERT_TRUE(pool.ok()) << pool.status();
  const SmallCache cache;  // 5 tokens: the last block is half full
  const std::vector<uint32_t> blocks = {5, 0, 3};
  ASSERT_TRUE(
      pool->Write({SmallCache::Bytes(cache.k), SmallCache::Bytes(cache.v), 5}, blocks).ok());
  std::string k, v;
  ASSERT_TRUE(pool->Read(blocks, 5, &k, &v).ok());
  EXPECT_EQ(std::memcmp(k.data(), cache.k.data(), cache.k.size() * 4), 0);
  EXPECT_EQ(std::memcmp(v.data(), cache.v.data(), cache.v.size() * 4), 0);
  // The other side finds token 2 of layer 0, head 1 where the description says: block 0, slot 0.
  const v1::KvView& view = server.pool.layers(0).k();
  float seen = 0;
  std::memcpy(&seen, broker.memory + view.base_offset() + view.head_stride(), sizeof(seen));
  EXPECT_EQ(seen, cache.k[(1 * 5 + 2) * 8]);
}

TEST_F(SharedPoolTest, HandsOutEachBlockOnceAndZeroesItOnReturn) {
  FakeBroker broker(PathOf("k.broker.sock"));
  auto pool = SharedPool::Create(Connect(), Options());
  ASSERT_TRUE(pool.ok()) << pool.status();
  const auto first = pool->AllocateBlocks(4);
  ASSERT_TRUE(first.ok());
  EXPECT_THAT(*first, ElementsAre(0, 1, 2, 3));
  EXPECT_TRUE(absl::IsResourceExhausted(pool->AllocateBlocks(3).status()));
  EXPECT_EQ(pool->NumFreeBlocks(), 2);
  const SmallCache cache(4);
  ASSERT_TRUE(pool->Write({SmallCache::Bytes(cache.k), SmallCache::Bytes(cache.v), 4},
                          std::vector<uint32_t>{1, 2})
                  .ok());
  pool->FreeBlocks(std::vector<uint32_t>{1, 1, 99});
  EXPECT_EQ(pool->NumFreeBlocks(), 3);
  std::string k, v;
  ASSERT_TRUE(pool->Read(std::vector<uint32_t>{1}, 2, &k, &v).ok());
  EXPECT_EQ(k, std::string(k.size(), '\0'));
}

TEST_F(SharedPoolTest, RefusesTablesThatDoNotFit) {
  FakeBroker broker(PathOf("k.broker.sock"));
  auto pool = SharedPool::Create(Connect(), Options());
  ASSERT_TRUE(pool.ok()) << pool.status();
  std::string k, v;
  EXPECT_TRUE(absl::IsInvalidArgument(pool->Read(std::vector<uint32_t>{6}, 2, &k, &v)));
  EXPECT_TRUE(absl::IsInvalidArgument(pool->Read(std::vector<uint32_t>{0}, 3, &k, &v)));
  EXPECT_TRUE(absl::IsInvalidArgument(pool->Read(std::vector<uint32_t>{0}, -1, &k, &v)));
  const SmallCache cache;
  EXPECT_TRUE(absl::IsInvalidArgument(pool->Write(
      {SmallCache::Bytes(cache.k), SmallCache::Bytes(cache.v), 4}, std::vector<uint32_t>{0, 1})));
}

TEST_F(SharedPoolTest, RefusesSizesThatOverflow) {
  SharedPoolOptions options = Options();
  options.num_blocks = int64_t{1} << 61;
  EXPECT_TRUE(absl::IsInvalidArgument(SharedPool::Create(Connect(), options).status()));
  options.num_blocks = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(SharedPool::Create(Connect(), options).status()));
}

TEST_F(SharedPoolTest, NeedsABroker) {
  server.info.clear_broker_address();
  EXPECT_TRUE(absl::IsFailedPrecondition(SharedPool::Create(Connect(), Options()).status()));
}

TEST_F(SharedPoolTest, PassesOnWhatTheBrokerSays) {
  FakeBroker broker(PathOf("k.broker.sock"), 8);
  EXPECT_TRUE(absl::IsResourceExhausted(SharedPool::Create(Connect(), Options()).status()));
}

TEST_F(SharedPoolTest, RefusesAnAnswerThatIsTooShort) {
  FakeBroker broker(PathOf("k.broker.sock"), 0, 5);
  EXPECT_TRUE(absl::IsUnavailable(SharedPool::Create(Connect(), Options()).status()));
}

TEST_F(SharedPoolTest, PassesOnARefusedRegistration) {
  FakeBroker broker(PathOf("k.broker.sock"));
  server.refusal = grpc::Status(grpc::StatusCode::NOT_FOUND, "model");
  EXPECT_TRUE(absl::IsNotFound(SharedPool::Create(Connect(), Options()).status()));
  EXPECT_THAT(server.unregistered, IsEmpty());
}

TEST(BrokerConnection, RefusesAPathTooLongForASocket) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      BrokerConnection::Connect(std::string(200, 'x'), absl::Seconds(1)).status()));
}

TEST(BrokerPaths, StandBesideTheSocketAsTheClientSeesIt) {
  EXPECT_THAT(BrokerPaths("unix:/a/k.sock", "unix:/b/k.broker.sock"),
              ElementsAre("/a/k.broker.sock", "/b/k.broker.sock"));
  EXPECT_THAT(BrokerPaths("unix:///a/k.sock", "/a/k.broker.sock"), ElementsAre("/a/k.broker.sock"));
  EXPECT_THAT(BrokerPaths("127.0.0.1:1", ""), IsEmpty());
}

}  // namespace
}  // namespace kvern::client
