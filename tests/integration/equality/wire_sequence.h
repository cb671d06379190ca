// A kvernd, a pool it shares with the test, and sequences in that pool.
#ifndef KVERN_TESTS_INTEGRATION_EQUALITY_WIRE_SEQUENCE_H_
#define KVERN_TESTS_INTEGRATION_EQUALITY_WIRE_SEQUENCE_H_

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "client/cpp/client.h"
#include "client/cpp/shared_pool.h"
#include "kernels/base/error_reason.h"
#include "tests/support/random_case.h"
#include "tests/support/server_process.h"

namespace kvern::equality {

inline constexpr int64_t kLayers = 2;
inline constexpr int64_t kKvHeads = 2;
inline constexpr int64_t kHeadDim = 16;
inline constexpr int64_t kBlockTokens = 16;
inline constexpr int64_t kBlocks = 96;
inline constexpr int64_t kRowBytes = kHeadDim * 2;  // bf16

// Dense [layers, kv_heads, tokens, head_dim] of each role.
struct Cache {
  std::string k, v;
  int64_t tokens = 0;

  client::DenseCache View() const {
    return {std::as_bytes(std::span(k)), std::as_bytes(std::span(v)), tokens};
  }
};

inline std::string RandomPlane(int64_t tokens, uint64_t seed) {
  std::string bytes;
  for (const float value : support::Rng(seed).Normals(kLayers * kKvHeads * tokens * kHeadDim)) {
    const BFloat16 rounded = FromFloat<BFloat16>(value);
    bytes.append(reinterpret_cast<const char*>(&rounded), sizeof(rounded));
  }
  return bytes;
}
inline Cache RandomCache(int64_t tokens, uint64_t seed) {
  return {RandomPlane(tokens, seed), RandomPlane(tokens, seed + 1), tokens};
}

inline std::vector<int32_t> Ints(const std::string& bytes) {
  std::vector<int32_t> values(bytes.size() / sizeof(int32_t));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// 0..tokens-1 in every row.
inline std::vector<int32_t> Everything(int64_t tokens) {
  std::vector<int32_t> all;
  for (int64_t i = 0; i < kLayers * kKvHeads * tokens; ++i) {
    all.push_back(static_cast<int32_t>(i % tokens));
  }
  return all;
}

class WireTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    server_ = support::ServerProcess::Start();
    ASSERT_NE(server_, nullptr);
    auto client = client::Client::Connect(server_->Address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<client::Client>(*client);
    v1::Model model;
    model.set_name("models/small");
    model.mutable_spec()->set_num_layers(kLayers);
    model.mutable_spec()->set_q_heads(2 * kKvHeads);
    model.mutable_spec()->set_kv_heads(kKvHeads);
    model.mutable_spec()->set_head_dim(kHeadDim);
    model.mutable_spec()->mutable_rope()->set_theta(10000);
    const auto registered = client_->RegisterModel(model);
    ASSERT_TRUE(registered.ok()) << registered.status();
  }
  static void TearDownTestSuite() {
    client_.reset();
    server_.reset();
  }

  void SetUp() override { pool_ = MakePool(v1::SHAPE_CLASS_S4); }

  static std::unique_ptr<client::SharedPool> MakePool(v1::ShapeClass max_shape_class) {
    auto pool = client::SharedPool::Create(*client_, {.model = "models/small",
                                                      .dtype = DType::kBF16,
                                                      .kv_heads = kKvHeads,
                                                      .head_dim = kHeadDim,
                                                      .layers = {0, 1},
                                                      .block_tokens = kBlockTokens,
                                                      .num_blocks = kBlocks,
                                                      .max_shape_class = max_shape_class});
    EXPECT_TRUE(pool.ok()) << pool.status();
    return pool.ok() ? std::make_unique<client::SharedPool>(*std::move(pool)) : nullptr;
  }

  // Blocks of its own for a cache, and as many fresh ones.
  struct Table {
    std::vector<uint32_t> source, destination;
    int64_t tokens = 0;
  };
  Table Write(const Cache& cache) {
    const auto source = pool_->AllocateBlocks(pool_->BlocksFor(cache.tokens));
    const auto destination = pool_->AllocateBlocks(pool_->BlocksFor(cache.tokens));
    EXPECT_TRUE(source.ok() && destination.ok());
    EXPECT_TRUE(pool_->Write(cache.View(), *source).ok());
    return {*source, *destination, cache.tokens};
  }
  Cache Read(const std::vector<uint32_t>& blocks, int64_t tokens) const {
    Cache cache;
    cache.tokens = tokens;
    EXPECT_TRUE(pool_->Read(blocks, tokens, &cache.k, &cache.v).ok());
    return cache;
  }
  // Every block of the pool: what no call may change unasked.
  Cache Snapshot() const {
    std::vector<uint32_t> all;
    for (uint32_t id = 0; id < kBlocks; ++id) all.push_back(id);
    return Read(all, kBlocks * kBlockTokens);
  }

  // Keys of small norm stay; nothing is protected.
  static v1::CompressCacheRequest Request(int64_t budget, v1::Placement placement) {
    v1::CompressCacheRequest request;
    request.set_model("models/small");
    v1::Policy* policy = request.mutable_policy();
    policy->mutable_budget()->set_tokens(budget);
    policy->add_scorers()->set_name("key_norm");
    policy->set_sink_tokens(0);
    policy->set_recent_tokens(0);
    policy->set_recent_share(0);
    policy->set_placement(placement);
    for (const char* field : {"kept", "positions", "k", "v", "packed"}) {
      request.mutable_response_mask()->add_paths(field);
    }
    return request;
  }
  v1::SequenceRequest* AddPaged(const std::string& id, const Table& table,
                                v1::CompressCacheRequest* request) const {
    v1::SequenceRequest* sequence = request->add_sequences();
    sequence->set_sequence_id(id);
    v1::PagedSource* paged = sequence->mutable_paged();
    paged->set_pool(pool_->Name());
    paged->set_num_tokens(table.tokens);
    paged->mutable_block_ids()->Assign(table.source.begin(), table.source.end());
    paged->mutable_destination_block_ids()->Assign(table.destination.begin(),
                                                   table.destination.end());
    return sequence;
  }
  static v1::SequenceRequest* AddInline(const std::string& id, const Cache& cache,
                                        v1::CompressCacheRequest* request) {
    v1::SequenceRequest* sequence = request->add_sequences();
    sequence->set_sequence_id(id);
    const auto set = [&](const std::string& bytes, v1::Tensor* tensor) {
      tensor->set_dtype(v1::DTYPE_BF16);
      for (const int64_t extent : {kLayers, kKvHeads, cache.tokens, kHeadDim}) {
        tensor->add_shape(extent);
      }
      tensor->set_data(bytes);
    };
    set(cache.k, sequence->mutable_inline_()->mutable_k());
    set(cache.v, sequence->mutable_inline_()->mutable_v());
    return sequence;
  }

  // The results of a call that succeeds as a whole.
  static std::vector<v1::SequenceResult> RunAll(const v1::CompressCacheRequest& request) {
    const auto response = client_->Compress(request);
    EXPECT_TRUE(response.ok()) << response.status();
    std::vector<v1::SequenceResult> results(request.sequences_size());
    if (response.ok()) results.assign(response->results().begin(), response->results().end());
    return results;
  }
  static v1::SequenceResult Run(const v1::CompressCacheRequest& request) {
    return RunAll(request).at(0);
  }

  static inline std::unique_ptr<support::ServerProcess> server_;
  static inline std::unique_ptr<client::Client> client_;
  std::unique_ptr<client::SharedPool> pool_;
};

}  // namespace kvern::equality

#endif  // KVERN_TESTS_INTEGRATION_EQUALITY_WIRE_SEQUENCE_H_
