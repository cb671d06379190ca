// Where kept tokens go, and what nobody may touch on the way.
#include <algorithm>
#include <limits>
#include <numeric>

#include "tests/unit/server/engine/engine_fixture.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

using PlacementTest = EngineTest;

std::vector<int32_t> KeptRow(const SequenceResult& result, int64_t layer, int64_t head) {
  const auto begin = result.kept.begin() + (layer * kKvHeads + head) * result.max_kept;
  return {begin, begin + result.max_kept};
}

CompressJob WithKept(CompressJob job) {
  job.fields.by_default = false;
  job.fields.kept = true;
  job.fields.positions = true;
  return job;
}

TEST_F(PlacementTest, CopyToWritesTheKeptRowsAndNothingElse) {
  const std::vector<std::byte> before = Snapshot();
  const std::vector<uint32_t> old_table = {9, 3, 12, 5, 7};
  const auto answer =
      engine_->CompressAndWait(WithKept(Job(KeyNorm(6, Placement::kCopyTo), {Paged("a")})));
  ASSERT_TRUE(answer.ok()) << answer.status();
  const SequenceResult& result = answer->results[0];
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.block_ids, (std::vector<uint32_t>{20, 21}));
  EXPECT_EQ(result.freed_block_ids, old_table);
  EXPECT_EQ(result.next_slot, 21u * kBlockTokens + 2);
  EXPECT_EQ(result.physical_tokens, 6);
  EXPECT_EQ(result.logical_tokens, 18);
  EXPECT_EQ(result.epoch, 1u);
  const std::vector<std::byte> after = Snapshot();
  ExpectOnlyWritten(before, after, {20, 21});
  for (const Role role : {Role::kKey, Role::kValue}) {
    for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
      const int64_t layer = row / kKvHeads, head = row % kKvHeads;
      const std::vector<int32_t> kept = KeptRow(result, layer, head);
      ASSERT_TRUE(std::is_sorted(kept.begin(), kept.end()));
      EXPECT_EQ(kept.front(), 0);
      EXPECT_EQ(kept.back(), 17);
      for (int64_t slot = 0; slot < 6; ++slot) {
        ASSERT_EQ(Row(after, result.block_ids, {role, layer, head, slot}),
                  Row(before, old_table, {role, layer, head, kept[slot]}));
      }
    }
  }
}

TEST_F(PlacementTest, CompactPacksForwardInTheOldBlocks) {
  const std::vector<std::byte> before = Snapshot();
  const std::vector<uint32_t> old_table = {9, 3, 12, 5, 7};
  const auto answer =
      engine_->CompressAndWait(WithKept(Job(KeyNorm(7, Placement::kCompact), {Paged("a")})));
  ASSERT_TRUE(answer.ok()) << answer.status();
  const SequenceResult& result = answer->results[0];
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.block_ids, (std::vector<uint32_t>{9, 3}));
  EXPECT_EQ(result.freed_block_ids, (std::vector<uint32_t>{12, 5, 7}));
  EXPECT_EQ(result.next_slot, 3u * kBlockTokens + 3);
  const std::vector<std::byte> after = Snapshot();
  ExpectOnlyWritten(before, after, {9, 3});
  for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
    const int64_t layer = row / kKvHeads, head = row % kKvHeads;
    const std::vector<int32_t> kept = KeptRow(result, layer, head);
    for (int64_t slot = 0; slot < 7; ++slot) {
      ASSERT_EQ(Row(after, old_table, {Role::kValue, layer, head, slot}),
                Row(before, old_table, {Role::kValue, layer, head, kept[slot]}));
    }
  }
}

TEST_F(PlacementTest, KeepsAReadOnlyPrefixInItsBlocks) {
  for (const Placement placement : {Placement::kCopyTo, Placement::kCompact}) {
    const std::vector<std::byte> before = Snapshot();
    SequenceJob sequence = Paged(placement == Placement::kCopyTo ? "copy" : "compact");
    sequence.readonly_prefix_tokens = 8;
    const SequenceResult result = RunOne(KeyNorm(11, placement), sequence);
    ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
    ASSERT_EQ(result.block_ids.size(), 3u);
    EXPECT_EQ(result.block_ids[0], 9u);
    EXPECT_EQ(result.block_ids[1], 3u);
    EXPECT_EQ(result.block_ids[2], placement == Placement::kCopyTo ? 20u : 12u);
    EXPECT_GE(result.publishable_prefix_tokens, 8);
    ExpectOnlyWritten(before, Snapshot(), {result.block_ids[2]});
  }
}

TEST_F(PlacementTest, NamesTheBlocksItNeedsWhenTheDestinationIsTooSmall) {
  const std::vector<std::byte> before = Snapshot();
  SequenceJob sequence = Paged("a");
  PagedOf(sequence).destination_block_ids = {20};
  const SequenceResult result = RunOne(KeyNorm(6, Placement::kCopyTo), sequence);
  EXPECT_EQ(result.outcome, Outcome::kFailed);
  EXPECT_EQ(ReasonOf(result.status), "DESTINATION_TOO_SMALL");
  EXPECT_NE(result.status.message().find("want 2"), absl::string_view::npos) << result.status;
  EXPECT_TRUE(result.block_ids.empty());
  EXPECT_EQ(Snapshot(), before);
}

TEST_F(PlacementTest, IsTheIdentityBitForBitWithinTheBudget) {
  for (const Placement placement :
       {Placement::kCopyTo, Placement::kCompact, Placement::kIndicesOnly}) {
    const std::vector<std::byte> before = Snapshot();
    const SequenceResult result = RunOne(KeyNorm(18, placement), Paged("a"));
    ASSERT_EQ(result.outcome, Outcome::kNoop) << result.status;
    EXPECT_EQ(result.epoch, 0u);
    EXPECT_EQ(result.physical_tokens, 18);
    EXPECT_TRUE(result.freed_block_ids.empty());
    EXPECT_EQ(Snapshot(), before);
    if (placement == Placement::kIndicesOnly) continue;
    EXPECT_EQ(result.block_ids, (std::vector<uint32_t>{9, 3, 12, 5, 7}));
    EXPECT_EQ(result.next_slot, 7u * kBlockTokens + 2);
  }
}

TEST_F(PlacementTest, RenumberedKeysAreThoseOfTheShorterPrompt) {
  pipeline::Policy policy = KeyNorm(6, Placement::kCopyTo);
  policy.positions = pipeline::PositionMode::kRenumber;
  const auto answer = engine_->CompressAndWait(WithKept(Job(policy, {Paged("a")})));
  ASSERT_TRUE(answer.ok()) << answer.status();
  const SequenceResult& result = answer->results[0];
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  for (size_t at = 0; at < result.positions.size(); ++at) {
    EXPECT_EQ(result.positions[at], static_cast<int32_t>(at % 6));
  }
  EXPECT_EQ(result.logical_tokens, 6);
  EXPECT_EQ(result.dropped_tokens, 12);
  SequenceJob longer = Paged("a");
  longer.epoch = 1;
  PagedOf(longer).block_ids = {20, 21};
  PagedOf(longer).destination_block_ids.clear();
  PagedOf(longer).num_tokens = 7;
  EXPECT_EQ(RunOne(KeyNorm(7, Placement::kIndicesOnly), longer).logical_tokens, 7);
}

TEST_F(PlacementTest, RenumberedStoredSequencesContinueAtTheirKeptCount) {
  pipeline::Policy policy = KeyNorm(12, Placement::kToStore);
  policy.positions = pipeline::PositionMode::kRenumber;
  ASSERT_EQ(RunOne(policy, Paged("kept")).logical_tokens, 12);
  EXPECT_EQ((*engine_->Store().Peek("kept"))->Info().logical_tokens, 12);
  SequenceJob stored;
  stored.sequence_id = "any";
  stored.epoch = 1;
  stored.source = StoredSource{"kept"};
  policy.budget = pipeline::TokenBudget{8};
  const SequenceResult result = RunOne(policy, stored);
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.logical_tokens, 8);
  EXPECT_EQ(result.dropped_tokens, 4);
  EXPECT_EQ((*engine_->Store().Peek("kept"))->Info().logical_tokens, 8);
}

TEST_F(PlacementTest, RefusedRenumberingLeavesTheNextPosition) {
  pipeline::Policy policy = KeyNorm(12, Placement::kToStore);
  policy.positions = pipeline::PositionMode::kRenumber;
  SetFailpoint(Failpoint::kBeforeStoreCommit, FailAction::kError);
  const SequenceResult result = RunOne(policy, Paged("kept"));
  EXPECT_EQ(result.outcome, Outcome::kFailed);
  EXPECT_EQ(result.logical_tokens, 18);
  EXPECT_EQ(result.dropped_tokens, 0);
}

TEST_F(PlacementTest, RenumberingMovesTheNextPositionEvenWhenAllTokensStay) {
  SequenceJob sequence = Paged("a");
  sequence.logical_tokens = 40;
  pipeline::Policy policy = KeyNorm(18, Placement::kCompact);
  policy.positions = pipeline::PositionMode::kRenumber;
  const SequenceResult result = RunOne(policy, sequence);
  EXPECT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.logical_tokens, 18);
}

TEST_F(PlacementTest, IndicesOnlyMovesNothingAndKeepsTheEpoch) {
  const std::vector<std::byte> before = Snapshot();
  const SequenceResult result = RunOne(KeyNorm(6, Placement::kIndicesOnly), Paged("a"));
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.epoch, 0u);
  EXPECT_EQ(result.kept.size(), static_cast<size_t>(kLayers * kKvHeads * 6));
  EXPECT_TRUE(result.block_ids.empty());
  EXPECT_EQ(Snapshot(), before);
}

TEST_F(PlacementTest, ValidateOnlyPlansTheTableAndChangesNothing) {
  const std::vector<std::byte> before = Snapshot();
  CompressJob job = Job(KeyNorm(6, Placement::kCopyTo), {Paged("a")});
  job.validate_only = true;
  const auto answer = engine_->CompressAndWait(job);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->results[0].outcome, Outcome::kApplied);
  EXPECT_EQ(answer->results[0].epoch, 0u);
  EXPECT_EQ(answer->results[0].block_ids, (std::vector<uint32_t>{20, 21}));
  EXPECT_EQ(Snapshot(), before);
  EXPECT_EQ(engine_->Gauges().remembered_sequences, 0);
}

TEST_F(PlacementTest, CompactsAnEmptySequenceToItself) {
  SequenceJob sequence = Paged("a");
  PagedOf(sequence).block_ids.clear();
  PagedOf(sequence).num_tokens = 0;
  const SequenceResult result = RunOne(KeyNorm(6, Placement::kCompact), sequence);
  EXPECT_EQ(result.outcome, Outcome::kNoop) << result.status;
  EXPECT_TRUE(result.block_ids.empty());
}

TEST_F(PlacementTest, HasNoNextSlotWhenTheTableIsFullAndNoBlockFollows) {
  SequenceJob sequence = Paged("a");
  PagedOf(sequence).destination_block_ids = {20, 21};
  EXPECT_EQ(RunOne(KeyNorm(8, Placement::kCopyTo), sequence).next_slot,
            std::numeric_limits<uint64_t>::max());
  PagedOf(sequence).destination_block_ids = {20, 21, 22};
  sequence.sequence_id = "b";
  EXPECT_EQ(RunOne(KeyNorm(8, Placement::kCopyTo), sequence).next_slot, 22u * kBlockTokens);
}

TEST_F(PlacementTest, RefusesAReadOnlyPoolAndAShapeAboveIts) {
  AddPool("fixed", [](memory::PoolSpec* spec) { spec->read_only = true; });
  AddPool("flat", [](memory::PoolSpec* spec) { spec->max_shape_class = 0; });
  SequenceJob sequence = Paged("a");
  PagedOf(sequence).pool = "fixed";
  EXPECT_EQ(RunOne(KeyNorm(6, Placement::kCompact), sequence).status.code(),
            absl::StatusCode::kFailedPrecondition);
  PagedOf(sequence).pool = "flat";
  const SequenceResult result = RunOne(KeyNorm(6, Placement::kCompact), sequence);
  EXPECT_EQ(ReasonOf(result.status), "SHAPE_CLASS") << result.status;
  EXPECT_EQ(events_.Rejected(Rejection::kShapeClass), 1);
}

TEST_F(PlacementTest, StoresAPagedSequencePackedAndDecodesIt) {
  pipeline::Policy policy = KeyNorm(10, Placement::kToStore);
  policy.k_codec = "i8t+rm";
  policy.v_codec = "i8t";
  const SequenceResult result = RunOne(policy, Paged("kept"));
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.stored_sequence, "kept");
  EXPECT_EQ(result.epoch, 1u);
  ASSERT_TRUE(result.k_error.has_value());
  EXPECT_LT(*result.k_error, 1e-3);
  const auto stored = engine_->Store().Find("kept");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_TRUE((*stored)->Packed());
  EXPECT_EQ((*stored)->Info().num_tokens, 10);
  EXPECT_EQ((*stored)->Info().k_codec, "i8t+rm");
  std::vector<std::byte> k, v;
  ASSERT_TRUE(engine_->DecodeStored(**stored, absl::InfiniteFuture(), &k, &v).ok());
  EXPECT_EQ(k.size(), static_cast<size_t>(kLayers * kKvHeads * 10 * kRowBytes));
  EXPECT_EQ(v.size(), k.size());

  SequenceJob again;
  again.sequence_id = "again";
  again.epoch = 1;
  again.source = StoredSource{"kept"};
  EXPECT_EQ(ReasonOf(RunOne(KeyNorm(5, Placement::kToStore), again).status), "SEQUENCE_PACKED");
}

TEST_F(PlacementTest, KeepsTheMeanKeyOfTheFirstPackingWhenItIsRenewed) {
  pipeline::Policy policy = KeyNorm(10, Placement::kToStore);
  policy.k_codec = "i8t+rm";
  policy.v_codec = "i8t";
  ASSERT_EQ(RunOne(policy, Paged("kept")).outcome, Outcome::kApplied);
  const std::vector<Float16> mean = (*engine_->Store().Peek("kept"))->Info().mean_key;
  ASSERT_FALSE(mean.empty());
  const auto bits = [](const std::vector<Float16>& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), 2 * values.size());
  };
  FillPool(/*seed=*/8);
  SequenceJob renewed = Paged("kept");
  renewed.epoch = 1;
  const SequenceResult result = RunOne(policy, renewed);
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  const auto after = *engine_->Store().Peek("kept");
  EXPECT_EQ(after->Info().epoch, 2u);
  EXPECT_EQ(bits(after->Info().mean_key), bits(mean));
  ASSERT_EQ(RunOne(policy, Paged("other")).outcome, Outcome::kApplied);
  EXPECT_NE(bits((*engine_->Store().Peek("other"))->Info().mean_key), bits(mean));
}

TEST_F(PlacementTest, TakesAReleaseBackOnlyWhenItSucceeds) {
  ASSERT_EQ(RunOne(KeyNorm(12, Placement::kToStore), Paged("kept")).outcome, Outcome::kApplied);
  ASSERT_TRUE(engine_->Store().Release("kept"));
  SequenceJob stored;
  stored.sequence_id = "any";
  stored.source = StoredSource{"kept"};
  EXPECT_EQ(ReasonOf(RunOne(KeyNorm(8, Placement::kDefault), stored).status), "EPOCH_MISMATCH");
  stored.epoch = 1;
  CompressJob plan = Job(KeyNorm(8, Placement::kDefault), {stored});
  plan.validate_only = true;
  EXPECT_EQ(engine_->CompressAndWait(plan)->results[0].outcome, Outcome::kApplied);
  EXPECT_EQ(RunOne(KeyNorm(8, Placement::kToStore), Paged("kept")).outcome, Outcome::kFailed);
  EXPECT_TRUE(engine_->Store().IsReleased("kept"));
  EXPECT_EQ(RunOne(KeyNorm(8, Placement::kIndicesOnly), stored).outcome, Outcome::kApplied);
  EXPECT_FALSE(engine_->Store().IsReleased("kept"));
}

TEST_F(PlacementTest, ReplacesAStoredSequenceByItsEpoch) {
  ASSERT_EQ(RunOne(KeyNorm(12, Placement::kToStore), Paged("kept")).outcome, Outcome::kApplied);
  SequenceJob stored;
  stored.sequence_id = "any";
  stored.source = StoredSource{"kept"};
  const SequenceResult stale = RunOne(KeyNorm(8, Placement::kDefault), stored);
  EXPECT_EQ(ReasonOf(stale.status), "EPOCH_MISMATCH");
  stored.epoch = 1;
  const SequenceResult result = RunOne(KeyNorm(8, Placement::kDefault), stored);
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  EXPECT_EQ(result.epoch, 2u);
  EXPECT_EQ(result.logical_tokens, 18);
  const auto found = engine_->Store().Find("kept");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ((*found)->Info().num_tokens, 8);
  EXPECT_EQ((*found)->Info().epoch, 2u);
}

TEST_F(PlacementTest, ReturnsInlineBytesAlsoForTheIdentity) {
  std::vector<std::byte> k(kLayers * kKvHeads * 9 * kRowBytes), v(k.size());
  std::memcpy(k.data(), pool_memory_->Data(), k.size());
  std::memcpy(v.data(), pool_memory_->Data() + k.size(), v.size());
  SequenceJob sequence;
  sequence.sequence_id = "inline";
  InlineSource bytes;
  bytes.layers = kLayers;
  bytes.kv_heads = kKvHeads;
  bytes.tokens = 9;
  bytes.head_dim = kHeadDim;
  bytes.k = k.data();
  bytes.v = v.data();
  sequence.source = bytes;
  const SequenceResult same = RunOne(KeyNorm(9, Placement::kReturn), sequence);
  EXPECT_EQ(same.outcome, Outcome::kNoop) << same.status;
  EXPECT_EQ(same.k, k);
  EXPECT_EQ(same.v, v);
  const SequenceResult result = RunOne(KeyNorm(5, Placement::kReturn), sequence);
  ASSERT_EQ(result.outcome, Outcome::kApplied) << result.status;
  ASSERT_EQ(result.v.size(), static_cast<size_t>(kLayers * kKvHeads * 5 * kRowBytes));
  for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
    for (int64_t slot = 0; slot < 5; ++slot) {
      const int64_t token = result.kept[row * 5 + slot];
      EXPECT_TRUE(std::equal(result.v.begin() + (row * 5 + slot) * kRowBytes,
                             result.v.begin() + (row * 5 + slot + 1) * kRowBytes,
                             v.begin() + (row * 9 + token) * kRowBytes));
    }
  }
}

TEST_F(PlacementTest, ReportsTheAttentionMassThatStays) {
  SequenceJob sequence = Paged("a");
  sequence.side.attention_mass.assign(kLayers * kKvHeads * 18, 1.0f);
  const SequenceResult result = RunOne(KeyNorm(9, Placement::kIndicesOnly), sequence);
  ASSERT_TRUE(result.kept_attention_mass.has_value()) << result.status;
  EXPECT_DOUBLE_EQ(*result.kept_attention_mass, 0.5);
  EXPECT_EQ(result.bytes_before, kLayers * kKvHeads * 18 * 2 * kRowBytes);
  EXPECT_EQ(result.bytes_after, result.bytes_before / 2);
}

}  // namespace
}  // namespace kvern::engine
