// The book of plans: what it takes, how plans end, what it answers of those that ended.
#include "server/engine/plan_book.h"

#include <gtest/gtest.h>

#include "kernels/base/error_reason.h"

namespace kvern::engine {
namespace {

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

HeldPlan PlanOf(const std::string& sequence, absl::Duration patience = absl::Seconds(10)) {
  auto job = std::make_shared<CompressJob>();
  job->peer = "unix";
  job->sequences.emplace_back().sequence_id = sequence;
  auto chosen = std::make_shared<ChosenPlan>();
  chosen->slots = std::make_shared<RememberedSlots>();
  HeldPlan plan;
  plan.job = job;
  plan.chosen = {chosen};
  plan.expires = kNow + patience;
  return plan;
}

std::string ReasonToClaim(PlanBook& book, const std::string& id, absl::Time now = kNow,
                          const std::string& peer = "unix") {
  return ReasonOf(book.Claim(id, peer, now).status());
}

TEST(PlanBook, GivesAPlanToOneCallUntilOneRan) {
  PlanBook book{Limits()};
  const std::string id = *book.Keep(PlanOf("a"), kNow);
  EXPECT_EQ(id.size(), 32u);
  EXPECT_NE(id, *book.Keep(PlanOf("a"), kNow));
  ASSERT_TRUE(book.Claim(id, "unix", kNow).ok());
  EXPECT_EQ(ReasonToClaim(book, id), "PLAN_BUSY");
  book.Settle(id, PlanBook::Ran::kNo);
  ASSERT_TRUE(book.Claim(id, "unix", kNow).ok());
  book.Settle(id, PlanBook::Ran::kYes);
  EXPECT_EQ(ReasonToClaim(book, id), "PLAN_APPLIED");
  EXPECT_EQ(book.Now(kNow).plans, 1);
  EXPECT_EQ(book.Now(kNow).applied, 1);
}

TEST(PlanBook, KnowsNoPlanOfAnotherPeer) {
  PlanBook book{Limits()};
  const std::string id = *book.Keep(PlanOf("a"), kNow);
  EXPECT_EQ(ReasonToClaim(book, id, kNow, "10.0.0.1"), "PLAN_UNKNOWN");
  EXPECT_EQ(ReasonToClaim(book, "none"), "PLAN_UNKNOWN");
  EXPECT_TRUE(book.Claim(id, "unix", kNow).ok());
}

TEST(PlanBook, DropsPlansWhoseTimeIsUpUnlessTheyAreBeingApplied) {
  PlanBook book{Limits()};
  const std::string brief = *book.Keep(PlanOf("a", absl::Seconds(1)), kNow);
  const std::string busy = *book.Keep(PlanOf("b", absl::Seconds(1)), kNow);
  const std::string longer = *book.Keep(PlanOf("c", absl::Seconds(5)), kNow);
  ASSERT_TRUE(book.Claim(busy, "unix", kNow).ok());
  const absl::Time later = kNow + absl::Seconds(2);
  EXPECT_EQ(ReasonToClaim(book, brief, later), "PLAN_EXPIRED");
  EXPECT_EQ(book.Now(later).plans, 2);
  book.Settle(busy, PlanBook::Ran::kYes);
  EXPECT_EQ(ReasonToClaim(book, busy, later), "PLAN_APPLIED");
  EXPECT_TRUE(book.Claim(longer, "unix", later).ok());
}

TEST(PlanBook, ReleasesPlansOfSequencesAndOfPoolsThatAreGone) {
  PlanBook book{Limits()};
  const std::string released = *book.Keep(PlanOf("a"), kNow);
  const std::string stays = *book.Keep(PlanOf("b"), kNow);
  book.Release({"a", "c"});
  EXPECT_EQ(ReasonToClaim(book, released), "PLAN_RELEASED");
  auto pool = std::make_shared<memory::Pool>();
  HeldPlan plan = PlanOf("d");
  auto chosen = std::make_shared<ChosenPlan>(*plan.chosen[0]);
  chosen->paged = true;
  chosen->pool = pool;
  plan.chosen = {nullptr, chosen};
  const std::string orphan = *book.Keep(std::move(plan), kNow);
  EXPECT_EQ(book.Now(kNow).plans, 2);
  pool.reset();
  EXPECT_EQ(book.Now(kNow).plans, 1);
  EXPECT_EQ(book.Now(kNow).released, 2);
  EXPECT_EQ(ReasonToClaim(book, orphan), "PLAN_RELEASED");
  EXPECT_TRUE(book.Claim(stays, "unix", kNow).ok());
}

TEST(PlanBook, RefusesWhatIsBeyondItsNumberOrBytes) {
  Limits limits;
  limits.plans = 2;
  PlanBook few(limits);
  ASSERT_TRUE(few.Keep(PlanOf("a"), kNow).ok());
  ASSERT_TRUE(few.Keep(PlanOf("b", absl::Seconds(1)), kNow).ok());
  const absl::Status full = few.Keep(PlanOf("c"), kNow).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), "QUOTA");
  EXPECT_TRUE(few.Keep(PlanOf("c"), kNow + absl::Seconds(1)).ok());  // one's time is up

  limits = Limits();
  limits.plan_bytes = PlanOf("a").Bytes() + 10;
  PlanBook small(limits);
  const std::string id = *small.Keep(PlanOf("a"), kNow);
  EXPECT_EQ(ReasonOf(small.Keep(PlanOf("b"), kNow).status()), "QUOTA");
  ASSERT_TRUE(small.Claim(id, "unix", kNow).ok());
  small.Settle(id, PlanBook::Ran::kYes);
  EXPECT_EQ(small.Now(kNow).bytes, 0);
  EXPECT_TRUE(small.Keep(PlanOf("b"), kNow).ok());
}

TEST(PlanBook, RemembersTheEndsOfAsManyAsItHolds) {
  Limits limits;
  limits.plans = 2;
  PlanBook book(limits);
  std::vector<std::string> ids;
  for (int round = 0; round < 3; ++round) {
    ids.push_back(*book.Keep(PlanOf("a"), kNow));
    book.Release({"a"});
  }
  EXPECT_EQ(ReasonToClaim(book, ids[0]), "PLAN_UNKNOWN");
  EXPECT_EQ(ReasonToClaim(book, ids[1]), "PLAN_RELEASED");
}

}  // namespace
}  // namespace kvern::engine
