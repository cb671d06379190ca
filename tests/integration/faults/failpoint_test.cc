// A server that fails, or dies, at each named point: the old view is whole every time.
#include "server/engine/failpoint.h"

#include <csignal>
#include <cstdlib>

#include "client/cpp/upload.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/integration/faults/server_pool.h"

namespace kvern::faults {
namespace {

using engine::FailEffect;
using engine::Failpoint;
using engine::FailpointInfo;

constexpr int64_t kTokens = 43;
constexpr int64_t kBudget = 21;
constexpr uint64_t kEpoch = 4;

// A server that fails at one point, over a pool that outlives it.
class FailpointTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(memory_.Data(), nullptr);
    before_ = CanaryImage(layout_);
    WriteSequence(layout_, blocks_, kTokens, /*seed=*/7, &before_);
  }

  // `setting` as KVERN_FAILPOINTS takes it; empty: a sound server. Memory is as at the start.
  void StartServer(const std::string& setting) {
    pool_.reset();
    client_.reset();
    memory_.Restore(before_);
    setenv("KVERN_FAILPOINTS", setting.c_str(), /*overwrite=*/1);
    // One thread of the cpu: a point within a move is then behind the first tile and before the
    // last.
    server_ = support::ServerProcess::Start(
        {"--store-bytes", "1048576", "--backend", "cpu", "--threads", "1"});
    unsetenv("KVERN_FAILPOINTS");
    ASSERT_NE(server_, nullptr);
    auto client = client::Client::Connect(server_->Address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_.emplace(*std::move(client));
    auto pool = RegisterPool(*client_, BrokerPath(*server_), layout_, memory_);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_.emplace(*std::move(pool));
  }

  static v1::Placement PlacementAt(const FailpointInfo& info) {
    if (info.point == Failpoint::kWithinCompactMove) return v1::PLACEMENT_COMPACT;
    if (info.point == Failpoint::kBeforeStoreCommit) return v1::PLACEMENT_TO_STORE;
    return v1::PLACEMENT_COPY_TO;
  }

  v1::CompressCacheRequest Request(v1::Placement placement) const {
    CallCase call;
    call.blocks = blocks_;
    call.tokens = kTokens;
    call.budget = kBudget;
    call.placement = placement;
    if (placement == v1::PLACEMENT_COPY_TO) call.destination = destination_;
    v1::CompressCacheRequest request = RequestOf(*pool_, call);
    request.mutable_sequences(0)->set_epoch(kEpoch);
    return request;
  }

  // What a placement may write at all: rows of its own blocks, no padding.
  std::vector<uint8_t> WritableAt(v1::Placement placement) const {
    if (placement == v1::PLACEMENT_COPY_TO) return ElementsOf(layout_, destination_);
    return ElementsOf(layout_, placement == v1::PLACEMENT_COMPACT ? blocks_ : Blocks());
  }

  // The plan at the sequence's epoch, which still is kEpoch; nothing is written for it.
  v1::SequenceResult PlanAgain() const {
    v1::CompressCacheRequest request = Request(v1::PLACEMENT_INDICES_ONLY);
    auto result = CompressOne(*client_, request);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : v1::SequenceResult();
  }

  void ExpectUnchanged(const v1::SequenceResult& failed) {
    EXPECT_EQ(failed.outcome(), v1::OUTCOME_FAILED);
    EXPECT_TRUE(absl::IsInternal(client::SequenceStatus(failed)));
    EXPECT_EQ(failed.epoch(), kEpoch);
    const v1::SequenceResult again = PlanAgain();
    EXPECT_EQ(again.outcome(), v1::OUTCOME_APPLIED) << again.status().message();
    EXPECT_EQ(again.epoch(), kEpoch);
  }
  void ExpectPoisoned(const v1::SequenceResult& failed) {
    EXPECT_EQ(failed.outcome(), v1::OUTCOME_FAILED);
    const absl::Status status = client::SequenceStatus(failed);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_EQ(ReasonOf(status), "SEQUENCE_POISONED");
    EXPECT_EQ(MetricSum(server_->Scrape(), "kvern_poisoned_sequences_total"), 1);
    EXPECT_TRUE(memory_.Now() != before_);
  }
  void ExpectApplied(const v1::SequenceResult& applied) {
    EXPECT_EQ(applied.outcome(), v1::OUTCOME_APPLIED) << applied.status().message();
    EXPECT_EQ(applied.epoch(), kEpoch + 1);
    EXPECT_EQ(applied.warnings_size(), 1);
    EXPECT_EQ(Difference(memory_.Now(),
                         Moved(layout_, before_, blocks_, TableOf(applied), KeptOf(applied))),
              "");
  }

  const PoolLayout layout_ = TokenMajorWithPadding({});
  const Blocks blocks_ = ScatteredBlocks(3, 6, 5, /*seed=*/1);
  const Blocks destination_ = ScatteredBlocks(40, 3, 4, /*seed=*/2);
  SharedMemory memory_{layout_.RegionBytes()};
  Image before_;
  std::unique_ptr<support::ServerProcess> server_;
  std::optional<client::Client> client_;
  std::optional<ServerPool> pool_;
};

TEST_F(FailpointTest, KeepsItsWordWhenAPointFails) {
  for (const FailpointInfo& info : engine::Failpoints()) {
    SCOPED_TRACE(info.name);
    ASSERT_NO_FATAL_FAILURE(StartServer(std::string(info.name) + "=error"));
    const auto result = CompressOne(*client_, Request(PlacementAt(info)));
    ASSERT_TRUE(result.ok()) << result.status();
    if (info.effect == FailEffect::kUnchanged) ExpectUnchanged(*result);
    if (info.effect == FailEffect::kPoisoned) ExpectPoisoned(*result);
    if (info.effect == FailEffect::kApplied) ExpectApplied(*result);
    EXPECT_EQ(DifferenceOutside(WritableAt(PlacementAt(info)), memory_.Now(), before_), "");
  }
}

TEST_F(FailpointTest, LeavesTheOldViewWholeWhenTheServerDiesAtAPoint) {
  for (const FailpointInfo& info : engine::Failpoints()) {
    SCOPED_TRACE(info.name);
    ASSERT_NO_FATAL_FAILURE(StartServer(std::string(info.name) + "=abort"));
    const auto result = CompressOne(*client_, Request(PlacementAt(info)));
    EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
    EXPECT_EQ(server_->Wait(), -SIGKILL);
    EXPECT_EQ(DifferenceOutside(WritableAt(PlacementAt(info)), memory_.Now(), before_), "");
    if (info.effect == FailEffect::kPoisoned) {
      EXPECT_TRUE(memory_.Now() != before_);
    }
  }
}

TEST_F(FailpointTest, ServesAgainOverTheMemoryOfADeadServer) {
  ASSERT_NO_FATAL_FAILURE(StartServer("within_copy_move=abort"));
  EXPECT_FALSE(CompressOne(*client_, Request(v1::PLACEMENT_COPY_TO)).ok());
  const Image torn = memory_.Now();
  EXPECT_TRUE(torn != before_);
  ASSERT_NO_FATAL_FAILURE(StartServer(""));
  memory_.Restore(torn);
  const auto result = CompressOne(*client_, Request(v1::PLACEMENT_COPY_TO));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(Difference(memory_.Now(),
                       Moved(layout_, before_, blocks_, TableOf(*result), KeptOf(*result))),
            "");
}

TEST_F(FailpointTest, LeavesTheStoreAsBeforeWhenItsCommitFails) {
  ASSERT_NO_FATAL_FAILURE(StartServer("before_store_commit=error"));
  const std::vector<std::byte> rows(kLayers * kKvHeads * 100 * layout_.head_dim * kElementBytes,
                                    std::byte{0x3C});
  v1::StoredSequence header;
  header.set_name("sequences/stored");
  header.set_model(pool_->model);
  header.set_dtype(v1::DTYPE_BF16);
  header.set_num_tokens(100);
  header.set_epoch(kEpoch);
  const auto put = client::PutSequence(*client_, header, {rows, rows, 100}, {});
  ASSERT_TRUE(put.ok()) << put.status();
  const int64_t used = MetricSum(server_->Scrape(), "kvern_store_bytes");
  EXPECT_GT(used, 0);

  for (const char* codec : {"raw16", "i8t+rm"}) {
    for (const bool stored : {false, true}) {
      SCOPED_TRACE(testing::Message() << codec << (stored ? ", replacing" : ", new"));
      v1::CompressCacheRequest request = Request(v1::PLACEMENT_TO_STORE);
      request.mutable_policy()->mutable_codecs()->set_k(codec);
      if (stored) {
        request.mutable_sequences(0)->mutable_stored()->set_sequence("sequences/stored");
      }
      const auto result = CompressOne(*client_, request);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(absl::IsInternal(client::SequenceStatus(*result)))
          << client::SequenceStatus(*result);
      EXPECT_EQ(MetricSum(server_->Scrape(), "kvern_store_bytes"), used);
      const auto listed = client_->ListSequences();
      ASSERT_TRUE(listed.ok()) << listed.status();
      ASSERT_EQ(listed->sequences_size(), 1);
      const auto stands = client_->GetSequence("sequences/stored");
      ASSERT_TRUE(stands.ok()) << stands.status();
      EXPECT_EQ(stands->SerializeAsString(), put->SerializeAsString());
    }
  }
  const auto fetched =
      client::FetchSequence(*client_, "sequences/stored", client::FetchForm::kAsStored, {});
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), std::as_bytes(std::span(fetched->k)).begin()));
  EXPECT_EQ(fetched->v, fetched->k);
  EXPECT_EQ(Difference(memory_.Now(), before_), "");
}

}  // namespace
}  // namespace kvern::faults
