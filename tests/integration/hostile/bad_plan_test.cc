// Plans that ask for what they may not, applies that lie, and books that are filled on purpose.
#include <chrono>
#include <limits>
#include <thread>

#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using absl::StatusCode;

// The pool's blocks stay as they are: whatever is applied here only tells indices.
v1::CompressCacheRequest Harmless(const HostileServer& server) {
  v1::CompressCacheRequest request = server.Paged();
  request.mutable_policy()->set_placement(v1::PLACEMENT_INDICES_ONLY);
  request.mutable_sequences(0)->mutable_paged()->clear_destination_block_ids();
  return request;
}

class BadPlan : public HostileTest {
 protected:
  static absl::StatusOr<v1::PlanCompressionResponse> Plan(
      const v1::CompressCacheRequest& compression, int32_t ttl_seconds = 0) {
    v1::PlanCompressionRequest request;
    *request.mutable_compression() = compression;
    request.set_ttl_seconds(ttl_seconds);
    return server_->Client().PlanCompression(request);
  }
  static absl::Status Apply(const v1::ApplyCompressionRequest& request) {
    const auto response = server_->Client().ApplyCompression(request);
    if (!response.ok()) return response.status();
    return client::SequenceStatus(response->results(0));
  }
  v1::ApplyCompressionRequest Valid() {
    v1::ApplyCompressionRequest request;
    const auto plan = Plan(Harmless(*server_));
    EXPECT_TRUE(plan.ok()) << plan.status();
    request.set_plan(plan.ok() ? plan->plan() : "");
    request.add_sequences()->set_sequence_id("base");
    return request;
  }
};

TEST_F(BadPlan, RequestsThatCannotBePlannedAreRefusedByField) {
  const std::vector<BadRequestCase> cases = {
      {"request_id", [](auto* r) { r->set_request_id("x"); }, {"request_id"}},
      {"validate_only", [](auto* r) { r->set_validate_only(true); }, {"validate_only"}},
      {"inline bytes",
       [](auto* r) { *r = InlineRequest(8); },
       {"sequences[0].inline", StatusCode::kInvalidArgument, "", "paged or stored"}},
      {"no sequence", [](auto* r) { r->clear_sequences(); }, {"sequences"}},
      {"no model", [](auto* r) { r->clear_model(); }, {"model"}},
      {"model unknown",
       [](auto* r) { r->set_model("models/none"); },
       {"", StatusCode::kNotFound, "MODEL_UNKNOWN"}},
      {"mask unknown",
       [](auto* r) { r->mutable_response_mask()->add_paths("all"); },
       {"response_mask[0]"}},
  };
  for (const BadRequestCase& bad : cases) {
    SCOPED_TRACE(bad.what);
    v1::CompressCacheRequest request = Harmless(*server_);
    bad.spoil(&request);
    ExpectRefused(Plan(request).status(), bad.want);
  }
  ExpectRefused(Plan(Harmless(*server_), -1).status(), {"ttl_seconds"});
  ExpectRefused(Plan(Harmless(*server_), std::numeric_limits<int32_t>::max()).status(),
                {"ttl_seconds"});
}

TEST_F(BadPlan, SequencesThatFailHaveNothingToApply) {
  v1::CompressCacheRequest request = Harmless(*server_);
  request.mutable_sequences(0)->mutable_paged()->set_block_ids(0, kPoolBlocks);
  const auto none = Plan(request);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(none->plan(), "");
  EXPECT_EQ(none->results(0).outcome(), v1::OUTCOME_FAILED);
  // Beside a good one it is stale from the start.
  v1::SequenceRequest good = Harmless(*server_).sequences(0);
  good.set_sequence_id("good");
  *request.add_sequences() = good;
  const auto some = Plan(request);
  ASSERT_TRUE(some.ok()) << some.status();
  v1::ApplyCompressionRequest apply;
  apply.set_plan(some->plan());
  apply.add_sequences()->set_sequence_id("base");
  ExpectRefused(Apply(apply), {"", StatusCode::kFailedPrecondition, "PLAN_STALE"});
}

struct ApplyCase {
  std::string what;
  std::function<void(v1::ApplyCompressionRequest*)> spoil;
  Refusal want;
};

TEST_F(BadPlan, AppliesThatLieAreRefusedAndThePlanStays) {
  const std::vector<ApplyCase> cases = {
      {"no plan", [](auto* r) { r->clear_plan(); }, {"plan"}},
      {"not a name", [](auto* r) { r->set_plan("plans/../pools"); }, {"plan"}},
      {"another collection", [](auto* r) { r->set_plan("pools/victim"); }, {"plan"}},
      {"unknown",
       [](auto* r) { r->set_plan("plans/" + std::string(32, '0')); },
       {"", StatusCode::kNotFound, "PLAN_UNKNOWN"}},
      {"request_id too long",
       [](auto* r) { r->set_request_id(std::string(129, 'x')); },
       {"request_id"}},
      {"no sequence", [](auto* r) { r->clear_sequences(); }, {"sequences"}},
      {"too many sequences",
       [](auto* r) {
         for (int i = 0; i < 1024; ++i) r->add_sequences()->set_sequence_id(std::to_string(i));
       },
       {"sequences"}},
      {"no id",
       [](auto* r) { r->mutable_sequences(0)->clear_sequence_id(); },
       {"sequences[0].sequence_id"}},
      {"sequence of no plan",
       [](auto* r) { r->add_sequences()->set_sequence_id("other"); },
       {"sequences[1].sequence_id"}},
      {"the same twice",
       [](auto* r) { *r->add_sequences() = r->sequences(0); },
       {"sequences[1].sequence_id"}},
      {"negative tokens",
       [](auto* r) { r->mutable_sequences(0)->set_num_tokens(-1); },
       {"sequences[0].num_tokens"}},
      {"tokens that overflow",
       [](auto* r) {
         r->mutable_sequences(0)->set_num_tokens(std::numeric_limits<int64_t>::max());
       },
       {"sequences[0].num_tokens"}},
  };
  const v1::ApplyCompressionRequest valid = Valid();
  for (const ApplyCase& bad : cases) {
    SCOPED_TRACE(bad.what);
    v1::ApplyCompressionRequest request = valid;
    bad.spoil(&request);
    ExpectRefused(Apply(request), bad.want);
  }
  EXPECT_TRUE(Apply(valid).ok());
}

TEST_F(BadPlan, BlocksThatAreNotTheSequencesAreRefused) {
  const std::vector<ApplyCase> cases = {
      {"more tokens than blocks",
       [](auto* r) { r->mutable_sequences(0)->set_num_tokens(kTokens + kBlockTokens); },
       {"sequences[0].paged.block_ids"}},
      {"a block beyond the pool",
       [](auto* r) {
         r->mutable_sequences(0)->set_num_tokens(kTokens + kBlockTokens);
         r->mutable_sequences(0)->add_appended_block_ids(kPoolBlocks);
       },
       {"sequences[0].paged.block_ids"}},
      {"a block of the sequence again",
       [](auto* r) {
         r->mutable_sequences(0)->set_num_tokens(kTokens + kBlockTokens);
         r->mutable_sequences(0)->add_appended_block_ids(0);
       },
       {"sequences[0].paged.block_ids"}},
  };
  for (const ApplyCase& bad : cases) {
    SCOPED_TRACE(bad.what);
    v1::ApplyCompressionRequest request = Valid();
    bad.spoil(&request);
    const absl::Status status = Apply(request);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(FieldOf(status), testing::StartsWith(bad.want.field)) << status;
  }
}

// A server of its own whose book is soon full.
TEST(PlanLimits, HoldAndComeFree) {
  const auto server = HostileServer::Start({"--plans", "3", "--plan-bytes", "64KiB"});
  ASSERT_TRUE(server.ok()) << server.status();
  const client::Client& client = (*server)->Client();
  v1::PlanCompressionRequest request;
  *request.mutable_compression() = Harmless(**server);
  request.set_ttl_seconds(1);
  for (int round = 0; round < 3; ++round) {
    const auto plan = client.PlanCompression(request);
    ASSERT_TRUE(plan.ok()) << plan.status();
  }
  ExpectRefused(client.PlanCompression(request).status(),
                {"", StatusCode::kResourceExhausted, "QUOTA", "--plans"});
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_TRUE(client.PlanCompression(request).ok());

  // One whose scores are kept is larger than the book.
  request.mutable_compression()->mutable_response_mask()->add_paths("scores");
  for (int copy = 1; copy < 20; ++copy) {
    v1::SequenceRequest* more = request.mutable_compression()->add_sequences();
    *more = request.compression().sequences(0);
    more->set_sequence_id("more-" + std::to_string(copy));
  }
  ExpectRefused(client.PlanCompression(request).status(),
                {"", StatusCode::kResourceExhausted, "QUOTA", "--plan-bytes"});
  (*server)->ExpectUnharmed();
}

}  // namespace
}  // namespace kvern::hostile
