// How a plan becomes a job again, and what it holds until then.
#include "server/engine/chosen_plan.h"

#include <gtest/gtest.h>

namespace kvern::engine {
namespace {

constexpr int64_t kRows = 64 * 32;  // layers * kv_heads

// Of one token whose attention was observed.
HeldPlan PlanOfOneToken() {
  auto job = std::make_shared<CompressJob>();
  SequenceJob& sequence = job->sequences.emplace_back();
  sequence.sequence_id = "a";
  PagedSource paged;
  paged.block_ids = {0};
  paged.num_tokens = 1;
  sequence.source = paged;
  sequence.side.attention_mass.assign(kRows, 1.0f);
  sequence.side.external_scores.assign(kRows, 1.0f);
  auto chosen = std::make_shared<ChosenPlan>();
  chosen->slots = std::make_shared<RememberedSlots>(RememberedSlots{{}, false, 1, 1});
  HeldPlan plan;
  plan.job = job;
  plan.chosen = {chosen};
  return plan;
}

TEST(JobOf, TakesNoMemoryForTokensThatNoBlockBacks) {
  const HeldPlan plan = PlanOfOneToken();
  ApplyJob apply;
  ApplyJob::Sequence& now = apply.sequences.emplace_back();
  now.sequence_id = "a";
  now.num_tokens = 60000;
  const absl::StatusOr<CompressJob> job = JobOf(plan, apply);
  ASSERT_TRUE(job.ok()) << job.status();
  const SequenceJob& sequence = job->sequences[0];
  ASSERT_TRUE(sequence.edge_status.ok()) << sequence.edge_status;
  EXPECT_EQ(std::get<PagedSource>(sequence.source).num_tokens, 60000);
  EXPECT_EQ(sequence.side.attention_mass.size(), size_t{kRows});
  EXPECT_EQ(sequence.side.external_scores.size(), size_t{kRows});
}

}  // namespace
}  // namespace kvern::engine
