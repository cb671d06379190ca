// What leaves a sequence as it is, bit for bit, and the edges of what can be asked (contract 2.2).
#include <gmock/gmock.h>

#include "tests/integration/equality/wire_sequence.h"

namespace kvern::equality {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;

class Identity : public WireTest {
 protected:
  void ExpectUntouched(const Cache& before) const {
    const Cache after = Snapshot();
    EXPECT_TRUE(after.k == before.k && after.v == before.v);
  }
};

TEST_F(Identity, BudgetOfAtLeastTheTokensLeavesAPagedSequence) {
  const Table table = Write(RandomCache(50, 1));
  const Cache before = Snapshot();
  for (const v1::Placement placement : {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT}) {
    for (const int64_t budget : {50, 51, 1'000'000}) {
      v1::CompressCacheRequest request = Request(budget, placement);
      AddPaged("paged", table, &request)->set_epoch(7);
      const v1::SequenceResult result = Run(request);
      EXPECT_EQ(result.outcome(), v1::OUTCOME_NOOP) << client::SequenceStatus(result);
      EXPECT_EQ(result.epoch(), 7u);
      EXPECT_THAT(result.block_ids(), ElementsAreArray(table.source));
      EXPECT_THAT(result.freed_block_ids(), IsEmpty());
      EXPECT_EQ(result.next_slot(), uint64_t{table.source.back()} * kBlockTokens + 2);
      EXPECT_EQ(result.num_dropped_tokens(), 0);
      EXPECT_EQ(result.bytes_after(), result.bytes_before());
      EXPECT_EQ(result.publishable_prefix_tokens(), 50);
      EXPECT_EQ(Ints(result.kept()), Everything(50));
      ExpectUntouched(before);
    }
  }
}

TEST_F(Identity, BudgetOfAtLeastTheTokensReturnsInlineBytesAsTheyCame) {
  Cache cache = RandomCache(33, 2);
  // Bits that arithmetic would not keep: a signalling NaN and a subnormal.
  const uint16_t strange[] = {0x7F81, 0x0001};
  std::memcpy(cache.k.data(), strange, sizeof(strange));
  for (const bool by_ratio : {false, true}) {
    v1::CompressCacheRequest request = Request(33, v1::PLACEMENT_RETURN);
    if (by_ratio) request.mutable_policy()->mutable_budget()->set_keep_ratio(1.0);
    AddInline("inline", cache, &request);
    const v1::SequenceResult result = Run(request);
    EXPECT_EQ(result.outcome(), v1::OUTCOME_NOOP) << client::SequenceStatus(result);
    EXPECT_EQ(result.k().data(), cache.k);
    EXPECT_EQ(result.v().data(), cache.v);
    EXPECT_EQ(Ints(result.positions()), Everything(33));
  }
}

TEST_F(Identity, BudgetZeroKeepsTheSinksAndSaysSo) {
  const Cache cache = RandomCache(50, 3);
  const Table table = Write(cache);
  v1::CompressCacheRequest request = Request(0, v1::PLACEMENT_COPY_TO);
  request.mutable_policy()->clear_sink_tokens();  // 4 by default
  AddPaged("sinks", table, &request);
  const v1::SequenceResult result = Run(request);
  ASSERT_EQ(result.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(result);
  EXPECT_EQ(Ints(result.kept()), Everything(4));
  EXPECT_TRUE(result.resolved().budget_grew());
  EXPECT_THAT(result.warnings(), ElementsAre(HasSubstr("4 sinks")));
  const Cache kept = Read({result.block_ids().begin(), result.block_ids().end()}, 4);
  for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
    EXPECT_EQ(kept.k.substr(row * 4 * kRowBytes, 4 * kRowBytes),
              cache.k.substr(row * 50 * kRowBytes, 4 * kRowBytes));
  }
}

TEST_F(Identity, BudgetZeroWithoutProtectionKeepsNothing) {
  const Table table = Write(RandomCache(50, 4));
  v1::CompressCacheRequest request = Request(0, v1::PLACEMENT_COPY_TO);
  AddPaged("nothing", table, &request);
  const v1::SequenceResult result = Run(request);
  ASSERT_EQ(result.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(result);
  EXPECT_EQ(result.num_physical_tokens(), 0);
  EXPECT_EQ(result.num_logical_tokens(), 50);
  EXPECT_EQ(result.epoch(), 1u);
  EXPECT_THAT(result.block_ids(), IsEmpty());
  EXPECT_THAT(result.freed_block_ids(), ElementsAreArray(table.source));
  EXPECT_EQ(result.next_slot(), uint64_t{table.destination[0]} * kBlockTokens);
  EXPECT_EQ(result.bytes_after(), 0);

  request = Request(0, v1::PLACEMENT_TO_STORE);
  request.mutable_policy()->mutable_codecs()->set_k("lm4+rm");
  request.mutable_policy()->mutable_codecs()->set_v("lm4");
  AddPaged("packed-nothing", table, &request);
  const v1::SequenceResult packed = Run(request);
  ASSERT_EQ(packed.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(packed);
  EXPECT_EQ(packed.num_physical_tokens(), 0);
  const auto stored = client_->GetSequence("sequences/packed-nothing");
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->num_tokens(), 0);
}

TEST_F(Identity, EmptySequenceStaysEmpty) {
  v1::CompressCacheRequest request = Request(10, v1::PLACEMENT_COPY_TO);
  AddPaged("empty", {}, &request);
  const v1::SequenceResult paged = Run(request);
  EXPECT_EQ(paged.outcome(), v1::OUTCOME_NOOP) << client::SequenceStatus(paged);
  EXPECT_EQ(paged.num_physical_tokens(), 0);

  request = Request(10, v1::PLACEMENT_RETURN);
  AddInline("empty", {}, &request);
  const v1::SequenceResult raw = Run(request);
  EXPECT_EQ(raw.outcome(), v1::OUTCOME_NOOP) << client::SequenceStatus(raw);
  EXPECT_EQ(raw.k().data(), "");

  request.mutable_policy()->mutable_codecs()->set_k("i8t+rm");
  const v1::SequenceResult packed = Run(request);
  EXPECT_EQ(packed.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(packed);
  EXPECT_EQ(packed.packed().blocks(), "");
  EXPECT_EQ(packed.packed().table(), "");
}

// No tensor of an empty sequence has an element: that it is not there is no fault.
TEST_F(Identity, EmptySequenceNeedsNoSideTensors) {
  for (const char* scorer : {"snapkv", "attention_mass", "external"}) {
    v1::CompressCacheRequest request = Request(10, v1::PLACEMENT_COPY_TO);
    request.mutable_policy()->mutable_scorers(0)->set_name(scorer);
    AddPaged("empty", {}, &request);
    const v1::SequenceResult result = Run(request);
    EXPECT_EQ(result.outcome(), v1::OUTCOME_NOOP) << client::SequenceStatus(result);
  }
}

TEST_F(Identity, OneTokenStaysOrGoes) {
  const Cache cache = RandomCache(1, 5);
  for (const int64_t budget : {0, 1}) {
    v1::CompressCacheRequest request = Request(budget, v1::PLACEMENT_RETURN);
    AddInline("one", cache, &request);
    const v1::SequenceResult result = Run(request);
    EXPECT_EQ(result.outcome(), budget == 1 ? v1::OUTCOME_NOOP : v1::OUTCOME_APPLIED);
    EXPECT_EQ(result.k().data(), budget == 1 ? cache.k : "");
    EXPECT_EQ(Ints(result.kept()), Everything(budget));
  }
}

TEST_F(Identity, ProtectionOfEveryTokenIsResolvedAsAsked) {
  const Table table = Write(RandomCache(50, 6));
  const Cache before = Snapshot();
  v1::CompressCacheRequest request = Request(10, v1::PLACEMENT_COPY_TO);
  v1::TokenRange* range = AddPaged("protected", table, &request)->add_protected_();
  range->set_end(50);

  const v1::SequenceResult grown = Run(request);
  EXPECT_EQ(grown.outcome(), v1::OUTCOME_NOOP) << client::SequenceStatus(grown);
  EXPECT_TRUE(grown.resolved().budget_grew());

  request.mutable_policy()->set_on_conflict(v1::ON_CONFLICT_FAIL);
  const v1::SequenceResult refused = Run(request);
  EXPECT_EQ(refused.outcome(), v1::OUTCOME_FAILED);
  EXPECT_EQ(ReasonOf(client::SequenceStatus(refused)), "BUDGET_BELOW_PROTECTED");
  ExpectUntouched(before);

  request.mutable_policy()->set_on_conflict(v1::ON_CONFLICT_TRIM_OLDEST);
  const v1::SequenceResult trimmed = Run(request);
  ASSERT_EQ(trimmed.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(trimmed);
  std::vector<int32_t> newest = Everything(10);
  for (int32_t& token : newest) token += 40;
  EXPECT_EQ(Ints(trimmed.kept()), newest);
  EXPECT_THAT(trimmed.warnings(), ElementsAre(HasSubstr("TRIM_OLDEST")));
}

TEST_F(Identity, ValidateOnlySaysWhatWouldHappenAndChangesNothing) {
  const Table table = Write(RandomCache(50, 7));
  const Cache before = Snapshot();
  for (const v1::Placement placement :
       {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT, v1::PLACEMENT_TO_STORE}) {
    v1::CompressCacheRequest request = Request(20, placement);
    request.set_validate_only(true);
    AddPaged("validated", table, &request);
    const v1::SequenceResult planned = Run(request);
    EXPECT_EQ(planned.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(planned);
    EXPECT_EQ(planned.epoch(), 0u);
    EXPECT_EQ(planned.num_physical_tokens(), 20);
    ExpectUntouched(before);
    EXPECT_TRUE(absl::IsNotFound(client_->GetSequence("sequences/validated").status()));
  }
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
  request.set_validate_only(true);
  AddPaged("validated", table, &request);
  const v1::SequenceResult planned = Run(request);
  request.set_validate_only(false);
  const v1::SequenceResult done = Run(request);  // at the same epoch: none was taken
  ASSERT_EQ(done.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(done);
  EXPECT_EQ(done.kept(), planned.kept());
  EXPECT_THAT(done.block_ids(), ElementsAreArray(planned.block_ids()));
  EXPECT_EQ(done.bytes_after(), planned.bytes_after());
}

}  // namespace
}  // namespace kvern::equality
