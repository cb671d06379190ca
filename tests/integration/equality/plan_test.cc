// Plan and apply leave what CompressCache leaves, byte for byte; and what makes a plan void.
#include <gmock/gmock.h>

#include <csignal>
#include <functional>
#include <thread>

#include "tests/integration/equality/wire_sequence.h"

namespace kvern::equality {
namespace {

using testing::ElementsAreArray;

class Plan : public WireTest {
 protected:
  void TearDown() override { ASSERT_TRUE(client_->ReleaseSequences({"a", "b"}).ok()); }

  static absl::StatusOr<v1::PlanCompressionResponse> TryPlan(
      const v1::CompressCacheRequest& request, int32_t ttl_seconds = 0) {
    v1::PlanCompressionRequest plan;
    *plan.mutable_compression() = request;
    plan.set_ttl_seconds(ttl_seconds);
    return client_->PlanCompression(plan);
  }
  static std::string PlanOf(const v1::CompressCacheRequest& request) {
    const auto planned = TryPlan(request);
    EXPECT_TRUE(planned.ok()) << planned.status();
    return planned.ok() ? planned->plan() : "";
  }
  static void AddMass(int64_t tokens, v1::SequenceRequest* sequence) {
    v1::Tensor* mass = sequence->mutable_side()->mutable_attention_mass();
    mass->set_dtype(v1::DTYPE_F32);
    for (const int64_t extent : {kLayers, kKvHeads, tokens}) mass->add_shape(extent);
    for (int64_t cell = 0; cell < kLayers * kKvHeads * tokens; ++cell) {
      const float value = 1.0f / static_cast<float>(1 + cell * 7 % tokens);
      mass->mutable_data()->append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }
  // Of the sequences of `request`, as they were planned.
  static v1::ApplyCompressionRequest Apply(const std::string& plan,
                                           const v1::CompressCacheRequest& request) {
    v1::ApplyCompressionRequest apply;
    apply.set_plan(plan);
    for (const v1::SequenceRequest& sequence : request.sequences()) {
      apply.add_sequences()->set_sequence_id(sequence.sequence_id());
      apply.mutable_sequences()->rbegin()->set_epoch(sequence.epoch());
    }
    return apply;
  }
  static v1::SequenceResult RunApply(const v1::ApplyCompressionRequest& apply) {
    const auto response = client_->ApplyCompression(apply);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() && response->results_size() > 0 ? response->results(0)
                                                         : v1::SequenceResult();
  }
  static std::string Reason(const v1::ApplyCompressionRequest& apply) {
    const auto response = client_->ApplyCompression(apply);
    if (!response.ok()) return ReasonOf(response.status());
    return ReasonOf(client::SequenceStatus(response->results(0)));
  }
  static std::string Text(v1::SequenceResult result) {
    result.clear_timings();
    return result.SerializeAsString();
  }
  void Restore(const Cache& pool) {
    std::vector<uint32_t> all;
    for (uint32_t id = 0; id < kBlocks; ++id) all.push_back(id);
    ASSERT_TRUE(pool_->Write(pool.View(), all).ok());
  }

  static void Forget(const std::vector<v1::SequenceResult>& results) {
    ASSERT_TRUE(client_->ReleaseSequences({"a", "b"}).ok());
    for (const v1::SequenceResult& result : results) {
      if (result.stored_sequence().empty()) continue;
      ASSERT_TRUE(client_->DeleteSequence(result.stored_sequence()).ok());
    }
  }

  // Runs the request in one call and in two, from the same state.
  void ExpectSameInTwoPhases(const v1::CompressCacheRequest& request) {
    const Cache before = Snapshot();
    const std::vector<v1::SequenceResult> once = RunAll(request);
    const Cache after_once = Snapshot();
    Restore(before);
    Forget(once);

    const auto planned = TryPlan(request);
    ASSERT_TRUE(planned.ok()) << planned.status();
    const Cache between = Snapshot();
    EXPECT_TRUE(between.k == before.k && between.v == before.v) << "a plan wrote";
    const auto applied = client_->ApplyCompression(Apply(planned->plan(), request));
    ASSERT_TRUE(applied.ok()) << applied.status();
    const Cache after_twice = Snapshot();
    EXPECT_TRUE(after_twice.k == after_once.k && after_twice.v == after_once.v);
    ASSERT_EQ(applied->results_size(), static_cast<int>(once.size()));
    for (size_t at = 0; at < once.size(); ++at) {
      EXPECT_EQ(once[at].outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(once[at]);
      EXPECT_TRUE(Text(applied->results(static_cast<int>(at))) == Text(once[at]))
          << applied->results(static_cast<int>(at)).ShortDebugString() << "\nwant "
          << once[at].ShortDebugString();
      const v1::SequenceResult& plan = planned->results(static_cast<int>(at));
      EXPECT_EQ(plan.kept(), once[at].kept());
      EXPECT_THAT(plan.block_ids(), ElementsAreArray(once[at].block_ids()));
      EXPECT_THAT(plan.freed_block_ids(), ElementsAreArray(once[at].freed_block_ids()));
    }
    Forget(once);
  }
};

TEST_F(Plan, OfEveryPlacementAndPositionModeEqualsOneCall) {
  const Table first = Write(RandomCache(50, 1)), second = Write(RandomCache(33, 3));
  for (const v1::Placement placement : {v1::PLACEMENT_COPY_TO, v1::PLACEMENT_COMPACT,
                                        v1::PLACEMENT_TO_STORE, v1::PLACEMENT_INDICES_ONLY}) {
    for (const v1::PositionMode mode :
         {v1::POSITION_MODE_KEEP_LOGICAL, v1::POSITION_MODE_RENUMBER}) {
      SCOPED_TRACE(absl::StrCat(placement, " ", mode));
      v1::CompressCacheRequest request = Request(20, placement);
      request.mutable_policy()->set_positions(mode);
      request.mutable_policy()->mutable_scorers(0)->set_name("keydiff");
      (*request.mutable_policy()->mutable_scorers(0)->mutable_params())["unrotate"] = "true";
      request.mutable_response_mask()->add_paths("scores");
      AddPaged("a", first, &request)->set_epoch(4);
      v1::SequenceRequest* sent = AddPaged("b", second, &request);
      sent->set_num_logical_tokens(70);
      for (int32_t slot = 0; slot < 33; ++slot) {
        sent->mutable_positions()->add_values(2 * slot + 1);
      }
      ExpectSameInTwoPhases(request);
    }
  }
}

TEST_F(Plan, OfCodecsLengthsProtectionAndSideTensorsEqualsOneCall) {
  const std::vector<std::function<void(v1::CompressCacheRequest*)>> cases = {
      [](v1::CompressCacheRequest* request) {
        v1::Policy* policy = request->mutable_policy();
        policy->set_placement(v1::PLACEMENT_TO_STORE);
        policy->mutable_codecs()->set_k("lm4+rm");
        policy->mutable_codecs()->set_v("i8t");
      },
      [](v1::CompressCacheRequest* request) {
        v1::StageSpec* budgeter = request->mutable_policy()->mutable_budgeter();
        budgeter->set_name("pyramid");
        (*budgeter->mutable_params())["window"] = "4";
      },
      [](v1::CompressCacheRequest* request) {
        request->mutable_sequences(0)->set_readonly_prefix_tokens(kBlockTokens);
        request->mutable_sequences(0)->add_protected_()->set_begin(30);
        request->mutable_sequences(0)->mutable_protected_(0)->set_end(33);
        request->mutable_policy()->set_placement(v1::PLACEMENT_COMPACT);
      },
      [](v1::CompressCacheRequest* request) {
        AddMass(50, request->mutable_sequences(0));
        request->mutable_policy()->mutable_scorers(0)->set_name("attention_mass");
      }};
  for (size_t at = 0; at < cases.size(); ++at) {
    SCOPED_TRACE(at);
    v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
    AddPaged("a", Write(RandomCache(50, 11)), &request);
    cases[at](&request);
    ExpectSameInTwoPhases(request);
  }
}

TEST_F(Plan, OfAStoredSequenceIsAppliedUnlessThatWasReplaced) {
  v1::CompressCacheRequest put = Request(40, v1::PLACEMENT_TO_STORE);
  AddPaged("a", Write(RandomCache(50, 21)), &put);
  const v1::SequenceResult stored = Run(put);
  ASSERT_EQ(stored.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(stored);
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_TO_STORE);
  request.add_sequences()->set_sequence_id("b");
  request.mutable_sequences(0)->mutable_stored()->set_sequence(stored.stored_sequence());
  request.mutable_sequences(0)->set_epoch(client_->GetSequence(stored.stored_sequence())->epoch());
  const std::string first = PlanOf(request);
  const std::string second = PlanOf(request);
  const v1::SequenceResult applied = RunApply(Apply(first, request));
  EXPECT_EQ(applied.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(applied);
  EXPECT_EQ(applied.num_physical_tokens(), 20);
  EXPECT_EQ(Reason(Apply(second, request)), "PLAN_STALE");
  EXPECT_EQ(client_->GetSequence(stored.stored_sequence())->num_tokens(), 20);
  ASSERT_TRUE(client_->DeleteSequence(stored.stored_sequence()).ok());
}

// The engine's step that ran meanwhile appended tokens: they all stay, behind the chosen ones.
TEST_F(Plan, KeepsTokensThatWereAppendedSince) {
  for (const v1::PositionMode mode : {v1::POSITION_MODE_KEEP_LOGICAL, v1::POSITION_MODE_RENUMBER}) {
    SCOPED_TRACE(mode);
    constexpr int64_t kPlanned = 46, kNow = 51, kKept = 20;
    const Cache cache = RandomCache(kNow, 31);
    const Table table = Write(cache);
    v1::CompressCacheRequest request = Request(kKept, v1::PLACEMENT_COPY_TO);
    request.mutable_policy()->set_positions(mode);
    v1::SequenceRequest* planned = AddPaged("a", table, &request);
    planned->mutable_paged()->set_num_tokens(kPlanned);
    planned->mutable_paged()->mutable_block_ids()->Truncate(3);
    planned->set_num_logical_tokens(100);
    for (int32_t slot = 0; slot < kPlanned; ++slot) {
      planned->mutable_positions()->add_values(2 * slot);
    }
    AddMass(kPlanned, planned);
    const auto plan = TryPlan(request);
    ASSERT_TRUE(plan.ok()) << plan.status();
    v1::ApplyCompressionRequest apply = Apply(plan->plan(), request);
    apply.mutable_sequences(0)->set_num_tokens(kNow);
    apply.mutable_sequences(0)->add_appended_block_ids(table.source[3]);
    const v1::SequenceResult result = RunApply(apply);
    ASSERT_EQ(result.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(result);
    EXPECT_GT(result.quality().kept_attention_mass(), 0);
    EXPECT_EQ(result.quality().kept_attention_mass(),
              plan->results(0).quality().kept_attention_mass());
    constexpr int64_t kTotal = kKept + kNow - kPlanned;
    EXPECT_EQ(result.num_physical_tokens(), kTotal);
    const bool renumbers = mode == v1::POSITION_MODE_RENUMBER;
    EXPECT_EQ(result.num_logical_tokens(), renumbers ? kTotal : 100 + kNow - kPlanned);
    EXPECT_THAT(result.freed_block_ids(), ElementsAreArray(table.source));
    const std::vector<int32_t> chosen = Ints(plan->results(0).kept());
    const std::vector<int32_t> kept = Ints(result.kept()), positions = Ints(result.positions());
    const Cache moved = Read({result.block_ids().begin(), result.block_ids().end()}, kTotal);
    for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
      for (int64_t slot = 0; slot < kTotal; ++slot) {
        const int64_t token = kept[row * kTotal + slot];
        EXPECT_EQ(token, slot < kKept ? chosen[row * kKept + slot] : kPlanned + slot - kKept);
        const int64_t position = token < kPlanned ? 2 * token : 100 + token - kPlanned;
        EXPECT_EQ(positions[row * kTotal + slot], renumbers ? slot : position);
        EXPECT_EQ(moved.v.substr((row * kTotal + slot) * kRowBytes, kRowBytes),
                  cache.v.substr((row * kNow + token) * kRowBytes, kRowBytes));
      }
    }
    ASSERT_TRUE(client_->ReleaseSequences({"a"}).ok());
  }
}

TEST_F(Plan, TakesTheBlocksToCopyToWhenItIsApplied) {
  const Table table = Write(RandomCache(50, 41));
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
  AddPaged("a", table, &request)->mutable_paged()->clear_destination_block_ids();
  const auto plan = TryPlan(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->results(0).outcome(), v1::OUTCOME_APPLIED);
  EXPECT_EQ(plan->results(0).block_ids_size(), 0);
  EXPECT_EQ(plan->results(0).num_physical_tokens(), 20);
  EXPECT_THAT(plan->results(0).freed_block_ids(), ElementsAreArray(table.source));
  v1::ApplyCompressionRequest apply = Apply(plan->plan(), request);
  apply.mutable_sequences(0)->add_destination_block_ids(table.destination[0]);
  apply.mutable_sequences(0)->add_destination_block_ids(table.destination[1]);
  const v1::SequenceResult result = RunApply(apply);
  EXPECT_EQ(result.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(result);
  EXPECT_THAT(result.block_ids(), testing::ElementsAre(table.destination[0], table.destination[1]));
}

TEST_F(Plan, IsStaleWhereTheSequenceIsNotAsItWas) {
  const auto request_of = [&](uint64_t seed) {
    v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COMPACT);
    AddPaged("a", Write(RandomCache(50, seed)), &request)->set_epoch(3);
    return request;
  };
  const v1::CompressCacheRequest request = request_of(51);
  const Cache before = Snapshot();
  v1::ApplyCompressionRequest apply = Apply(PlanOf(request), request);
  apply.mutable_sequences(0)->set_epoch(4);
  EXPECT_EQ(Reason(apply), "PLAN_STALE");
  apply = Apply(PlanOf(request), request);
  apply.mutable_sequences(0)->set_epoch(2);
  EXPECT_EQ(Reason(apply), "PLAN_STALE");
  apply = Apply(PlanOf(request), request);
  apply.mutable_sequences(0)->set_num_tokens(49);
  EXPECT_EQ(Reason(apply), "PLAN_STALE");
  const Cache after = Snapshot();
  EXPECT_TRUE(after.k == before.k && after.v == before.v);
  // Another call compressed it meanwhile.
  apply = Apply(PlanOf(request), request);
  ASSERT_EQ(Run(request).outcome(), v1::OUTCOME_APPLIED);
  const Cache compressed = Snapshot();
  EXPECT_EQ(Reason(apply), "PLAN_STALE");
  const Cache still = Snapshot();
  EXPECT_TRUE(still.k == compressed.k && still.v == compressed.v);
}

TEST_F(Plan, EndsOnceAndSaysHow) {
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COPY_TO);
  AddPaged("a", Write(RandomCache(50, 61)), &request);
  const v1::ApplyCompressionRequest applied = Apply(PlanOf(request), request);
  ASSERT_EQ(RunApply(applied).outcome(), v1::OUTCOME_APPLIED);
  EXPECT_EQ(Reason(applied), "PLAN_APPLIED");
  ASSERT_TRUE(client_->ReleaseSequences({"a"}).ok());

  const v1::ApplyCompressionRequest released = Apply(PlanOf(request), request);
  ASSERT_TRUE(client_->ReleaseSequences({"a"}).ok());
  EXPECT_EQ(Reason(released), "PLAN_RELEASED");

  const auto brief = TryPlan(request, /*ttl_seconds=*/1);
  ASSERT_TRUE(brief.ok()) << brief.status();
  EXPECT_EQ(brief->ttl_seconds(), 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_EQ(Reason(Apply(brief->plan(), request)), "PLAN_EXPIRED");

  const v1::ApplyCompressionRequest orphaned = Apply(PlanOf(request), request);
  EXPECT_THAT(server_->Scrape(), testing::HasSubstr("kvern_plans 1\n"));
  pool_.reset();
  EXPECT_EQ(Reason(orphaned), "PLAN_RELEASED");
  EXPECT_THAT(server_->Scrape(), testing::HasSubstr("kvern_plan_bytes 0\n"));
  EXPECT_EQ(Reason(Apply("plans/0123456789abcdef", request)), "PLAN_UNKNOWN");
}

TEST_F(Plan, IsAppliedInPartAndAnswersAgainUnderItsRequestId) {
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COMPACT);
  AddPaged("a", Write(RandomCache(50, 71)), &request);
  AddPaged("b", Write(RandomCache(50, 73)), &request);
  const auto plan = TryPlan(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  v1::ApplyCompressionRequest apply = Apply(plan->plan(), request);
  apply.mutable_sequences()->DeleteSubrange(0, 1);
  apply.set_request_id("apply-1");
  const auto first = client_->ApplyCompression(apply);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(first->results_size(), 1);
  EXPECT_EQ(first->results(0).sequence_id(), "b");
  EXPECT_EQ(first->results(0).outcome(), v1::OUTCOME_APPLIED);
  const Cache before = Snapshot();
  auto again = client_->ApplyCompression(apply);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->replayed());
  EXPECT_EQ(Text(again->results(0)), Text(first->results(0)));
  const Cache after = Snapshot();
  EXPECT_TRUE(after.k == before.k && after.v == before.v);
  apply.mutable_sequences(0)->set_num_tokens(50);
  EXPECT_TRUE(absl::IsInvalidArgument(client_->ApplyCompression(apply).status()));
}

TEST_F(Plan, LosesNothingWhenTheServerIsKilledBetweenItsPhases) {
  v1::CompressCacheRequest request = Request(20, v1::PLACEMENT_COMPACT);
  AddPaged("a", Write(RandomCache(50, 81)), &request);
  const v1::ApplyCompressionRequest apply = Apply(PlanOf(request), request);
  const Cache before = Snapshot();
  server_->Signal(SIGKILL);
  EXPECT_EQ(server_->Wait(), -SIGKILL);
  const Cache after = Snapshot();  // of the frontend's own memory
  EXPECT_TRUE(after.k == before.k && after.v == before.v);
  TearDownTestSuite();
  SetUpTestSuite();
  EXPECT_EQ(Reason(apply), "PLAN_UNKNOWN");
  pool_ = MakePool(v1::SHAPE_CLASS_S4);
  v1::CompressCacheRequest anew = Request(20, v1::PLACEMENT_COMPACT);
  AddPaged("a", Write(RandomCache(50, 81)), &anew);
  ExpectSameInTwoPhases(anew);
}

}  // namespace
}  // namespace kvern::equality
