// A paged pool of known bytes, registered with a real server by hand, so that every field of the
// registration can be anything.
#ifndef KVERN_TESTS_INTEGRATION_HOSTILE_TEST_POOL_H_
#define KVERN_TESTS_INTEGRATION_HOSTILE_TEST_POOL_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "client/cpp/broker_connection.h"
#include "client/cpp/client.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status_macros.h"
#include "tests/support/server_process.h"

namespace kvern::hostile {

inline constexpr int32_t kLayers = 2;
inline constexpr int32_t kQHeads = 4;
inline constexpr int32_t kKvHeads = 2;
inline constexpr int32_t kHeadDim = 32;
inline constexpr int32_t kBlockTokens = 16;
inline constexpr int64_t kElementBytes = 2;  // bf16

inline v1::Model TestModel() {
  v1::Model model;
  model.set_name("models/hostile");
  v1::ModelSpec* spec = model.mutable_spec();
  spec->set_num_layers(kLayers);
  spec->set_q_heads(kQHeads);
  spec->set_kv_heads(kKvHeads);
  spec->set_head_dim(kHeadDim);
  spec->mutable_rope()->set_theta(10000);
  return model;
}

// Standard normal values, rounded.
inline std::string RandomBf16(int64_t elements, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::string bytes(elements * kElementBytes, '\0');
  for (int64_t i = 0; i < elements; ++i) {
    const BFloat16 value = FromFloat<BFloat16>(normal(random));
    std::memcpy(bytes.data() + i * kElementBytes, &value, sizeof(value));
  }
  return bytes;
}

// A sealed, mapped memfd.
class TestMemory {
 public:
  explicit TestMemory(int64_t bytes)
      : fd_(memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING)), bytes_(bytes) {
    if (ftruncate(fd_, bytes) != 0 || fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
      return;
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (data != MAP_FAILED) data_ = static_cast<char*>(data);
  }
  ~TestMemory() {
    if (data_ != nullptr) munmap(data_, bytes_);
    close(fd_);
  }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  int Descriptor() const { return fd_; }
  std::string Bytes() const { return std::string(data_, bytes_); }
  void Write(const std::string& bytes) { std::memcpy(data_, bytes.data(), bytes.size()); }

 private:
  int fd_;
  int64_t bytes_;
  char* data_ = nullptr;
};

// Regions are [layers][k, v][blocks][kv_heads][block_tokens][head_dim] of bf16.
class TestPool {
 public:
  static int64_t PlaneElements(int64_t blocks) {
    return blocks * kKvHeads * kBlockTokens * kHeadDim;
  }
  static std::string BrokerPath(const support::ServerProcess& server) {
    return server.SocketPath("kvern.broker.sock");
  }
  // The registration of a pool over one attached region; its name is free to choose.
  static v1::Pool Describe(const std::string& attachment, int64_t blocks) {
    v1::Pool pool;
    pool.set_model(TestModel().name());
    pool.set_dtype(v1::DTYPE_BF16);
    pool.set_block_tokens(kBlockTokens);
    pool.set_num_blocks(blocks);
    pool.set_max_shape_class(v1::SHAPE_CLASS_S4);
    pool.set_engine(v1::ENGINE_VLLM);
    pool.add_regions()->set_attachment_id(attachment);
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      v1::PoolLayer* described = pool.add_layers();
      described->set_layer(layer);
      DescribeView(2 * layer, blocks, described->mutable_k());
      DescribeView(2 * layer + 1, blocks, described->mutable_v());
    }
    return pool;
  }
  // Registers `pools/{id}` of the test model, which must be registered.
  static absl::StatusOr<std::unique_ptr<TestPool>> Register(const client::Client& client,
                                                            const support::ServerProcess& server,
                                                            const std::string& id, int64_t blocks) {
    const std::string bytes = RandomBf16(2 * kLayers * PlaneElements(blocks), /*seed=*/11);
    auto pool = std::unique_ptr<TestPool>(new TestPool(static_cast<int64_t>(bytes.size())));
    pool->memory_.Write(bytes);
    KVERN_ASSIGN_OR_RETURN(
        client::BrokerConnection broker,
        client::BrokerConnection::Connect(BrokerPath(server), absl::Seconds(30)));
    KVERN_ASSIGN_OR_RETURN(pool->attachment_, broker.Attach(pool->memory_.Descriptor()));
    pool->broker_ = std::make_unique<client::BrokerConnection>(std::move(broker));
    v1::Pool described = Describe(pool->attachment_, blocks);
    described.set_name("pools/" + id);
    KVERN_RETURN_IF_ERROR(client.RegisterPool(described).status());
    pool->name_ = described.name();
    return pool;
  }

  const std::string& Name() const { return name_; }
  const std::string& Attachment() const { return attachment_; }
  std::string Bytes() const { return memory_.Bytes(); }

 private:
  explicit TestPool(int64_t bytes) : memory_(bytes) {}

  static void DescribeView(int64_t plane, int64_t blocks, v1::KvView* view) {
    view->set_base_offset(plane * PlaneElements(blocks) * kElementBytes);
    view->set_block_stride(PlaneElements(1) * kElementBytes);
    view->set_head_stride(kBlockTokens * kHeadDim * kElementBytes);
    view->set_token_stride(kHeadDim * kElementBytes);
    view->set_dim_stride(kElementBytes);
  }

  TestMemory memory_;
  std::unique_ptr<client::BrokerConnection> broker_;
  std::string name_;
  std::string attachment_;
};

// A table of blocks 0, 1, 2, ... and fresh ones right behind it, half of the tokens to stay.
inline v1::CompressCacheRequest PagedRequest(const std::string& pool, int64_t tokens) {
  v1::CompressCacheRequest request;
  request.set_model(TestModel().name());
  v1::Policy* policy = request.mutable_policy();
  policy->mutable_budget()->set_tokens(tokens / 2);
  policy->add_scorers()->set_name("keydiff");
  policy->set_sink_tokens(4);
  policy->set_recent_tokens(8);
  v1::SequenceRequest* sequence = request.add_sequences();
  sequence->set_sequence_id("base");
  v1::PagedSource* paged = sequence->mutable_paged();
  paged->set_pool(pool);
  paged->set_num_tokens(tokens);
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t fresh = (tokens / 2 + kBlockTokens - 1) / kBlockTokens;
  for (int64_t id = 0; id < blocks; ++id) paged->add_block_ids(static_cast<uint32_t>(id));
  for (int64_t id = blocks; id < blocks + fresh; ++id) {
    paged->add_destination_block_ids(static_cast<uint32_t>(id));
  }
  return request;
}

inline v1::Tensor KvTensor(int64_t tokens, uint32_t seed) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DTYPE_BF16);
  for (const int64_t extent : {int64_t{kLayers}, int64_t{kKvHeads}, tokens, int64_t{kHeadDim}}) {
    tensor.add_shape(extent);
  }
  tensor.set_data(RandomBf16(int64_t{kLayers} * kKvHeads * tokens * kHeadDim, seed));
  return tensor;
}

// The same policy over bytes in the message, which come back as bytes.
inline v1::CompressCacheRequest InlineRequest(int64_t tokens) {
  v1::CompressCacheRequest request = PagedRequest("", tokens);
  v1::InlineSource* source = request.mutable_sequences(0)->mutable_inline_();
  *source->mutable_k() = KvTensor(tokens, /*seed=*/21);
  *source->mutable_v() = KvTensor(tokens, /*seed=*/22);
  return request;
}

}  // namespace kvern::hostile

#endif  // KVERN_TESTS_INTEGRATION_HOSTILE_TEST_POOL_H_
