// A real server in a process of its own writes this process's memory: named rows, and nothing else.
#include <set>

#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "kvern/v1/compression.grpc.pb.h"
#include "tests/integration/faults/server_pool.h"

namespace kvern::faults {
namespace {

class SharedMemoryTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { server = support::ServerProcess::Start().release(); }
  static void TearDownTestSuite() {
    delete server;
    server = nullptr;
  }
  void SetUp() override {
    ASSERT_NE(server, nullptr);
    auto connected = client::Client::Connect(server->Address());
    ASSERT_TRUE(connected.ok()) << connected.status();
    client_.emplace(*std::move(connected));
  }

  // A fresh pool of canaries with a sequence of `call.tokens` in `call.blocks`.
  void MakePool(const PoolLayout& layout, const CallCase& call) {
    pool_.reset();
    memory_.emplace(layout.RegionBytes());
    ASSERT_NE(memory_->Data(), nullptr);
    before_ = CanaryImage(layout);
    WriteSequence(layout, call.blocks, call.tokens, /*seed=*/7, &before_);
    memory_->Restore(before_);
    auto pool = RegisterPool(*client_, BrokerPath(*server), layout, *memory_);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_.emplace(*std::move(pool));
    call_ = call;
    call_.sequence = "sequence-" + std::to_string(++sequences);
  }

  v1::SequenceResult Apply() {
    auto result = CompressOne(*client_, RequestOf(*pool_, call_));
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) return {};
    EXPECT_EQ(result->outcome(), v1::OUTCOME_APPLIED) << result->status().message();
    return *std::move(result);
  }

  // 43 tokens in 6 blocks of 8, of which the last holds 3.
  static CallCase SmallCall(v1::Placement placement) {
    CallCase call;
    call.blocks = ScatteredBlocks(3, 6, 5, /*seed=*/1);
    call.tokens = 43;
    call.budget = 21;
    call.placement = placement;
    if (placement == v1::PLACEMENT_COPY_TO) call.destination = ScatteredBlocks(40, 4, 4, 2);
    return call;
  }

  static support::ServerProcess* server;
  static int sequences;
  std::optional<client::Client> client_;
  std::optional<SharedMemory> memory_;
  std::optional<ServerPool> pool_;
  CallCase call_;
  Image before_;
};
support::ServerProcess* SharedMemoryTest::server = nullptr;
int SharedMemoryTest::sequences = 0;

void ExpectPlan(const v1::SequenceResult& result, const CallCase& call) {
  const KeptTokens kept = KeptOf(result);
  ASSERT_EQ(kept.max_kept, call.budget);
  ASSERT_EQ(static_cast<int64_t>(kept.tokens.size()), kLayers * kKvHeads * call.budget);
  for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
    const auto begin = kept.tokens.begin() + row * call.budget;
    EXPECT_EQ(std::set<int32_t>(begin, begin + call.budget).size(), call.budget);
    EXPECT_TRUE(std::is_sorted(begin, begin + call.budget));
    EXPECT_EQ(begin[0], 0);                              // the sink
    EXPECT_EQ(begin[call.budget - 1], call.tokens - 1);  // recent
    EXPECT_GT(begin[call.budget - 1], call.budget - 1);  // rows moved
    for (int64_t slot = 0; slot < call.readonly_prefix; ++slot) EXPECT_EQ(begin[slot], slot);
  }
}

TEST_F(SharedMemoryTest, WritesTheKeptRowsAndNoOtherByteInEveryLayout) {
  for (const auto placement : {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT}) {
    std::string kept;  // the same in every layout
    for (const PoolLayout& layout : AllLayouts({})) {
      SCOPED_TRACE(layout.name + (placement == v1::PLACEMENT_COMPACT ? ", compact" : ", copy"));
      ASSERT_NO_FATAL_FAILURE(MakePool(layout, SmallCall(placement)));
      const v1::SequenceResult result = Apply();
      ASSERT_NO_FATAL_FAILURE(ExpectPlan(result, call_));
      if (kept.empty()) kept = result.kept();
      EXPECT_EQ(result.kept(), kept);
      const Blocks& named = placement == v1::PLACEMENT_COPY_TO ? call_.destination : call_.blocks;
      ASSERT_EQ(TableOf(result), Blocks(named.begin(), named.begin() + layout.BlocksFor(21)));
      EXPECT_EQ(Difference(memory_->Now(),
                           Moved(layout, before_, call_.blocks, TableOf(result), KeptOf(result))),
                "");
    }
  }
}

TEST_F(SharedMemoryTest, NeverWritesAReadOnlyPrefix) {
  for (const auto placement : {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT}) {
    for (const PoolLayout& layout : AllLayouts({})) {
      SCOPED_TRACE(layout.name + (placement == v1::PLACEMENT_COMPACT ? ", compact" : ", copy"));
      CallCase call = SmallCall(placement);
      call.readonly_prefix = 16;
      call.budget = 27;
      ASSERT_NO_FATAL_FAILURE(MakePool(layout, call));
      const v1::SequenceResult result = Apply();
      ASSERT_NO_FATAL_FAILURE(ExpectPlan(result, call_));
      ASSERT_EQ(result.block_ids_size(), 4);
      EXPECT_EQ(result.block_ids(0), call.blocks[0]);
      EXPECT_EQ(result.block_ids(1), call.blocks[1]);
      EXPECT_EQ(Difference(memory_->Now(),
                           Moved(layout, before_, call_.blocks, TableOf(result), KeptOf(result))),
                "");
    }
  }
}

TEST_F(SharedMemoryTest, WritesNothingWhereNothingIsToMove) {
  const PoolLayout layout = PackedKeysAndValues({});
  ASSERT_NO_FATAL_FAILURE(MakePool(layout, SmallCall(v1::PLACEMENT_COPY_TO)));
  v1::CompressCacheRequest request = RequestOf(*pool_, call_);
  request.mutable_policy()->set_placement(v1::PLACEMENT_INDICES_ONLY);
  request.mutable_sequences(0)->mutable_paged()->clear_destination_block_ids();
  EXPECT_EQ(CompressOne(*client_, request)->outcome(), v1::OUTCOME_APPLIED);
  request.mutable_policy()->set_placement(v1::PLACEMENT_COMPACT);
  request.set_validate_only(true);
  EXPECT_EQ(CompressOne(*client_, request)->outcome(), v1::OUTCOME_APPLIED);
  request.set_validate_only(false);
  request.mutable_policy()->mutable_budget()->set_tokens(call_.tokens);
  EXPECT_EQ(CompressOne(*client_, request)->outcome(), v1::OUTCOME_NOOP);
  request.mutable_policy()->mutable_budget()->set_tokens(21);
  request.mutable_policy()->set_placement(v1::PLACEMENT_TO_STORE);
  EXPECT_EQ(CompressOne(*client_, request)->outcome(), v1::OUTCOME_APPLIED);
  EXPECT_EQ(Difference(memory_->Now(), before_), "");
}

TEST_F(SharedMemoryTest, WritesNothingForARefusedSequence) {
  const PoolLayout layout = HeadMajorWithPadding({});
  ASSERT_NO_FATAL_FAILURE(MakePool(layout, SmallCall(v1::PLACEMENT_COPY_TO)));
  struct Refusal {
    const char* name;
    void (*spoil)(v1::PagedSource*);
  };
  const Refusal refusals[] = {
      {"too few destination blocks",
       [](auto* paged) { paged->mutable_destination_block_ids()->Truncate(2); }},
      {"destination in the table",
       [](auto* paged) { paged->set_destination_block_ids(0, paged->block_ids(5)); }},
      {"destination twice",
       [](auto* paged) { paged->set_destination_block_ids(0, paged->destination_block_ids(1)); }},
      {"destination past the pool", [](auto* paged) { paged->set_destination_block_ids(2, 64); }},
      {"source past the pool", [](auto* paged) { paged->set_block_ids(5, 4294967295u); }},
      {"source twice", [](auto* paged) { paged->set_block_ids(5, paged->block_ids(0)); }},
      {"more tokens than blocks", [](auto* paged) { paged->set_num_tokens(49); }},
  };
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(refusal.name);
    v1::CompressCacheRequest request = RequestOf(*pool_, call_);
    refusal.spoil(request.mutable_sequences(0)->mutable_paged());
    const auto result = CompressOne(*client_, request);
    EXPECT_FALSE(result.ok() && client::SequenceStatus(*result).ok());
    EXPECT_EQ(Difference(memory_->Now(), before_), "");
  }
  EXPECT_EQ(Apply().num_physical_tokens(), 21);  // the unspoilt one runs
}

// Two sequences over one read-only prefix, in one call.
TEST_F(SharedMemoryTest, KeepsTheSequencesOfACohortApart) {
  const PoolLayout layout = TokenMajorWithPadding({});
  CallCase first = SmallCall(v1::PLACEMENT_COMPACT);
  first.readonly_prefix = 8;
  ASSERT_NO_FATAL_FAILURE(MakePool(layout, first));
  CallCase second = call_;
  second.sequence += "-beside";
  second.blocks = {first.blocks[0], 50, 44, 47, 53, 41};
  WriteSequence(layout, {50, 44, 47, 53, 41}, 35, /*seed=*/8, &before_);
  memory_->Restore(before_);
  v1::CompressCacheRequest request = RequestOf(*pool_, call_);
  AddSequence(*pool_, second, &request);
  const auto response = client_->Compress(request);
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_EQ(response->results_size(), 2);
  Image want = before_;
  for (int i = 0; i < 2; ++i) {
    const v1::SequenceResult& result = response->results(i);
    ASSERT_EQ(result.outcome(), v1::OUTCOME_APPLIED) << result.status().message();
    want =
        Moved(layout, want, i == 0 ? call_.blocks : second.blocks, TableOf(result), KeptOf(result));
  }
  EXPECT_EQ(Difference(memory_->Now(), want), "");
}

// Ruling 18: 4 KiB + 5 B per block id sent or returned + 4 B per index or length of the answer.
TEST_F(SharedMemoryTest, SendsNoMoreThanTheWireBoundAllows) {
  for (const int64_t tokens : {0, 5, 64, 1000, 16384, 60000}) {
    for (const auto placement : {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT}) {
      for (const bool asks_kept : {false, true}) {
        SCOPED_TRACE(testing::Message() << tokens << " tokens, placement " << placement
                                        << (asks_kept ? ", kept" : ""));
        const int64_t blocks = tokens / 4 + 1;
        const PoolLayout layout =
            LayersInsideBlocks({.head_dim = 8, .block_tokens = 4, .num_blocks = 2 * blocks + 1});
        CallCase call;
        call.blocks = ScatteredBlocks(0, layout.BlocksFor(tokens), 1, /*seed=*/3);
        call.tokens = tokens;
        call.budget = tokens / 2;
        call.placement = placement;
        call.asks_kept = asks_kept;
        if (placement == v1::PLACEMENT_COPY_TO) {
          call.destination = ScatteredBlocks(static_cast<uint32_t>(blocks), blocks, 1, /*seed=*/4);
        }
        ASSERT_NO_FATAL_FAILURE(MakePool(layout, call));
        call_.sequence.resize(128, 'x');  // the longest id
        const v1::CompressCacheRequest request = RequestOf(*pool_, call_);
        const auto response = client_->Compress(request);
        ASSERT_TRUE(response.ok()) << response.status();
        const v1::SequenceResult& result = response->results(0);
        ASSERT_TRUE(client::SequenceStatus(result).ok()) << result.status().message();
        const auto ids = static_cast<int64_t>(call.blocks.size() + call.destination.size()) +
                         result.block_ids_size() + result.freed_block_ids_size();
        const auto indices = static_cast<int64_t>(result.kept().size() / sizeof(int32_t)) +
                             result.kept_counts_size();
        EXPECT_EQ(result.positions().size() + result.scores().size() + result.k().ByteSizeLong() +
                      result.v().ByteSizeLong(),
                  0u);
        const auto bytes = static_cast<int64_t>(request.ByteSizeLong() + response->ByteSizeLong());
        EXPECT_LE(bytes, 4096 + 5 * ids + 4 * indices);
        EXPECT_EQ(indices,
                  kLayers * kKvHeads * (1 + (asks_kept ? result.num_physical_tokens() : 0)));
      }
    }
  }
}

// A step's cohort of 500 sequences of 20 blocks. The constant part of the bound is the call's, an
// answer's own fields take about 110 B per sequence: hundreds of sequences of ten blocks or fewer
// exceed the bound by a few per cent, and so do ids above 16,383 in such numbers.
// Over the stub: the client library repeats in every result what the wire says once.
TEST_F(SharedMemoryTest, SendsNoMoreThanTheWireBoundAllowsForACohort) {
  const PoolLayout layout =
      LayersInsideBlocks({.head_dim = 8, .block_tokens = 4, .num_blocks = 15000});
  CallCase call = {.blocks = ScatteredBlocks(0, 20, 1, 3), .tokens = 80, .budget = 40};
  call.destination = ScatteredBlocks(20, 10, 1, 4);
  call.asks_kept = false;
  ASSERT_NO_FATAL_FAILURE(MakePool(layout, call));
  v1::CompressCacheRequest request = RequestOf(*pool_, call_);
  for (int i = 1; i < 500; ++i) {
    CallCase next = call_;
    next.sequence += "-" + std::to_string(i);
    next.blocks = ScatteredBlocks(30 * i, 20, 1, 3);
    next.destination = ScatteredBlocks(30 * i + 20, 10, 1, 4);
    AddSequence(*pool_, next, &request);
  }
  v1::CompressCacheResponse response;
  grpc::ClientContext context;
  const grpc::Status status = v1::CompressionService::NewStub(client_->Channel())
                                  ->CompressCache(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  int64_t ids = 0, lengths = 0;
  for (const v1::SequenceResult& result : response.results()) {
    ASSERT_TRUE(client::SequenceStatus(result).ok()) << result.status().message();
    ids += 30 + result.block_ids_size() + result.freed_block_ids_size();
    lengths += result.kept_counts_size();
  }
  EXPECT_LE(static_cast<int64_t>(request.ByteSizeLong() + response.ByteSizeLong()),
            4096 + 5 * ids + 4 * lengths);
}

}  // namespace
}  // namespace kvern::faults
