// From one call to the next over gRPC: replays, epochs, cohorts, positions and lengths that follow.
#include <gmock/gmock.h>

#include "tests/integration/equality/wire_sequence.h"

namespace kvern::equality {
namespace {

using testing::ElementsAreArray;

class Continuity : public WireTest {};

TEST_F(Continuity, ReplayAnswersAgainAndMovesNothing) {
  const Table table = Write(RandomCache(50, 11));
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COMPACT);
  request.set_request_id("replay-1");
  AddPaged("replayed", table, &request);
  auto first = client_->Compress(request);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->replayed());
  // What the frontend has written since must survive the replay.
  const Cache later = RandomCache(20, 12);
  ASSERT_TRUE(pool_->Write(later.View(), std::span(table.source).first(2)).ok());
  const Cache before = Snapshot();
  auto second = client_->Compress(request);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(second->replayed());
  const Cache after = Snapshot();
  EXPECT_TRUE(after.k == before.k && after.v == before.v);
  second->set_replayed(false);
  EXPECT_EQ(first->SerializeAsString(), second->SerializeAsString());

  request.mutable_policy()->mutable_budget()->set_tokens(21);
  EXPECT_TRUE(absl::IsInvalidArgument(client_->Compress(request).status()));
}

TEST_F(Continuity, EqualEpochRunsLowerIsRefusedHigherIsAdopted) {
  const Table table = Write(RandomCache(50, 13));
  const auto run = [&](uint64_t epoch, int64_t budget, v1::Placement placement) {
    v1::CompressCacheRequest request = Request(budget, placement);
    AddPaged("epochs", table, &request)->set_epoch(epoch);
    return Run(request);
  };
  EXPECT_EQ(run(3, 20, v1::PLACEMENT_INDICES_ONLY).epoch(), 3u);
  EXPECT_EQ(run(3, 50, v1::PLACEMENT_COPY_TO).epoch(), 3u);  // NOOP
  EXPECT_EQ(run(3, 20, v1::PLACEMENT_COPY_TO).epoch(), 4u);

  const Cache before = Snapshot();
  const v1::SequenceResult stale = run(3, 20, v1::PLACEMENT_COMPACT);
  EXPECT_EQ(stale.outcome(), v1::OUTCOME_FAILED);
  EXPECT_TRUE(absl::IsAborted(client::SequenceStatus(stale)));
  EXPECT_EQ(ReasonOf(client::SequenceStatus(stale)), "EPOCH_MISMATCH");
  const Cache after = Snapshot();
  EXPECT_TRUE(after.k == before.k && after.v == before.v);

  EXPECT_EQ(run(4, 20, v1::PLACEMENT_COPY_TO).epoch(), 5u);
  EXPECT_EQ(run(90, 20, v1::PLACEMENT_COPY_TO).epoch(), 91u);
  EXPECT_EQ(run(5, 20, v1::PLACEMENT_COPY_TO).outcome(), v1::OUTCOME_FAILED);
  ASSERT_TRUE(client_->ReleaseSequences({"epochs"}).ok());
  EXPECT_EQ(run(0, 20, v1::PLACEMENT_COPY_TO).epoch(), 1u);  // never seen
}

TEST_F(Continuity, HigherEpochForgetsThePositions) {
  const Table table = Write(RandomCache(50, 14));
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
  AddPaged("forgotten", table, &request);
  const v1::SequenceResult first = Run(request);
  ASSERT_EQ(first.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(first);
  const Table kept = {{first.block_ids().begin(), first.block_ids().end()}, {}, 20};
  request = Request(20, v1::PLACEMENT_INDICES_ONLY);
  AddPaged("forgotten", kept, &request)->set_epoch(1);
  EXPECT_EQ(Run(request).positions(), first.positions());
  request.mutable_sequences(0)->set_epoch(2);
  EXPECT_EQ(Ints(Run(request).positions()), Everything(20));
}

TEST_F(Continuity, BadSequenceOfACohortHurtsNoOther) {
  const std::vector<Table> tables = {Write(RandomCache(50, 15)), Write(RandomCache(50, 17)),
                                     Write(RandomCache(33, 19))};
  std::vector<v1::SequenceResult> alone;
  for (const size_t index : {0, 2}) {
    v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
    request.set_validate_only(true);
    AddPaged(absl::StrCat("cohort-", index), tables[index], &request);
    alone.push_back(Run(request));
  }
  const Cache before = Read(tables[1].source, 50);
  const auto cohort = [&](int64_t budget) {
    v1::CompressCacheRequest request = Request(budget, v1::PLACEMENT_COPY_TO);
    for (size_t index = 0; index < tables.size(); ++index) {
      AddPaged(absl::StrCat("cohort-", index), tables[index], &request);
    }
    return request;
  };
  v1::CompressCacheRequest request = cohort(20);
  request.mutable_sequences(1)->mutable_paged()->set_block_ids(2, kBlocks + 5);
  const std::vector<v1::SequenceResult> results = RunAll(request);
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[1].outcome(), v1::OUTCOME_FAILED);
  const absl::Status status = client::SequenceStatus(results[1]);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(FieldOf(status), "sequences[1].paged.block_ids");
  for (const size_t index : {0, 2}) {
    EXPECT_EQ(results[index].outcome(), v1::OUTCOME_APPLIED);
    EXPECT_EQ(results[index].epoch(), 1u);
    EXPECT_EQ(results[index].kept(), alone[index / 2].kept());
  }
  const Cache after = Read(tables[1].source, 50);
  EXPECT_TRUE(after.k == before.k && after.v == before.v);

  // A policy of its own that cannot be met is one sequence's fault too.
  ASSERT_TRUE(client_->ReleaseSequences({"cohort-0", "cohort-2"}).ok());
  request = cohort(20);
  *request.mutable_sequences(2)->mutable_policy() = request.policy();
  request.mutable_sequences(2)->mutable_policy()->mutable_scorers(0)->set_name("snapkv");
  const std::vector<v1::SequenceResult> others = RunAll(request);
  EXPECT_EQ(others[0].outcome(), v1::OUTCOME_APPLIED);
  EXPECT_EQ(others[1].outcome(), v1::OUTCOME_APPLIED);
  EXPECT_TRUE(absl::IsFailedPrecondition(client::SequenceStatus(others[2])));
}

TEST_F(Continuity, RememberedPositionsEqualPositionsThatAreSent) {
  const Table table = Write(RandomCache(50, 21));
  v1::CompressCacheRequest request = Request(30, v1::PLACEMENT_COPY_TO);
  AddPaged("remembered", table, &request);
  const v1::SequenceResult first = Run(request);
  ASSERT_EQ(first.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(first);

  // Scores that depend on where the tokens were: keys are turned back by their positions.
  request = Request(12, v1::PLACEMENT_INDICES_ONLY);
  v1::StageSpec* scorer = request.mutable_policy()->mutable_scorers(0);
  scorer->set_name("keydiff");
  (*scorer->mutable_params())["unrotate"] = "true";
  request.mutable_response_mask()->add_paths("scores");
  const Table kept = {{first.block_ids().begin(), first.block_ids().end()}, {}, 30};
  AddPaged("remembered", kept, &request)->set_epoch(first.epoch());
  v1::SequenceRequest* sent = AddPaged("sent", kept, &request);
  sent->set_num_logical_tokens(50);
  sent->mutable_positions()->set_per_head(true);
  const std::vector<int32_t> positions = Ints(first.positions());
  sent->mutable_positions()->mutable_values()->Assign(positions.begin(), positions.end());
  AddPaged("neither", kept, &request);
  const std::vector<v1::SequenceResult> second = RunAll(request);
  ASSERT_EQ(second.size(), 3u);
  EXPECT_EQ(second[0].outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(second[0]);
  EXPECT_EQ(second[0].num_logical_tokens(), 50);
  EXPECT_EQ(second[0].num_logical_tokens(), second[1].num_logical_tokens());
  EXPECT_EQ(second[0].positions(), second[1].positions());
  EXPECT_EQ(second[0].scores(), second[1].scores());
  EXPECT_EQ(second[0].kept(), second[1].kept());
  EXPECT_NE(second[0].scores(), second[2].scores());  // or the test says nothing
}

TEST_F(Continuity, LengthsOfLayersAreAnsweredAndTakenBack) {
  const Table table = Write(RandomCache(50, 23));
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
  v1::StageSpec* budgeter = request.mutable_policy()->mutable_budgeter();
  budgeter->set_name("pyramid");
  (*budgeter->mutable_params())["window"] = "4";
  AddPaged("ragged", table, &request);
  const v1::SequenceResult first = Run(request);
  ASSERT_EQ(first.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(first);
  EXPECT_EQ(first.shape_class(), v1::SHAPE_CLASS_S3);
  ASSERT_EQ(first.lengths_size(), kLayers);
  EXPECT_GT(first.lengths(0), first.lengths(1));
  EXPECT_EQ(first.lengths(0) + first.lengths(1), 20 * kLayers);
  EXPECT_EQ(first.num_physical_tokens(), first.lengths(0));
  for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
    EXPECT_EQ(first.kept_counts(row), first.lengths(row / kKvHeads));
  }

  request = Request(first.lengths(1) - 1, v1::PLACEMENT_INDICES_ONLY);
  const Table kept = {{first.block_ids().begin(), first.block_ids().end()}, {}, first.lengths(0)};
  v1::SequenceRequest* again = AddPaged("ragged", kept, &request);
  again->set_epoch(1);
  *again->mutable_paged()->mutable_lengths() = first.lengths();
  const v1::SequenceResult second = Run(request);
  ASSERT_EQ(second.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(second);
  EXPECT_EQ(second.num_physical_tokens(), first.lengths(1) - 1);
  const std::vector<int32_t> tokens = Ints(second.kept());
  for (size_t slot = 0; slot < tokens.size(); ++slot) {
    const int64_t row = static_cast<int64_t>(slot) / second.num_physical_tokens();
    EXPECT_LT(tokens[slot], first.lengths(row / kKvHeads));
    EXPECT_GE(tokens[slot], 0);
  }
}

TEST_F(Continuity, PoolRefusesLengthsItDidNotDeclare) {
  pool_ = MakePool(v1::SHAPE_CLASS_S2);
  const Table table = Write(RandomCache(50, 25));
  const Cache before = Snapshot();
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
  request.mutable_policy()->mutable_budgeter()->set_name("pyramid");
  (*request.mutable_policy()->mutable_budgeter()->mutable_params())["window"] = "4";
  AddPaged("undeclared", table, &request);
  const v1::SequenceResult result = Run(request);
  EXPECT_EQ(result.outcome(), v1::OUTCOME_FAILED);
  EXPECT_EQ(ReasonOf(client::SequenceStatus(result)), "SHAPE_CLASS");
  const Cache after = Snapshot();
  EXPECT_TRUE(after.k == before.k && after.v == before.v);
}

}  // namespace
}  // namespace kvern::equality
