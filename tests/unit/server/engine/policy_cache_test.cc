// What was resolved once is found again, and only for the very same question.
#include "server/engine/policy_cache.h"

#include <gtest/gtest.h>

namespace kvern::engine {
namespace {

pipeline::Policy Keep(double ratio) {
  pipeline::Policy policy;
  policy.budget = pipeline::KeepRatioBudget{ratio};
  policy.scorers = {{"key_norm", {}}};
  return policy;
}

pipeline::Availability Paged() {
  pipeline::Availability available;
  available.source = pipeline::Source::kPaged;
  available.inputs = pipeline::kNeedsValues;
  return available;
}

TEST(PolicyCache, ResolvesAnEqualPolicyOnce) {
  PolicyCache cache(4);
  const auto first = cache.Resolve(Keep(0.5), Paged());
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)->scorer, "key_norm");
  EXPECT_EQ((*first)->policy.scorers.size(), 1);
  EXPECT_EQ(*cache.Resolve(Keep(0.5), Paged()), *first);
}

TEST(PolicyCache, TellsApartWhatDiffers) {
  PolicyCache cache(8);
  const auto first = cache.Resolve(Keep(0.5), Paged());
  ASSERT_TRUE(first.ok());
  const auto other_ratio = cache.Resolve(Keep(0.25), Paged());
  ASSERT_TRUE(other_ratio.ok());
  EXPECT_NE(*other_ratio, *first);
  EXPECT_EQ((*other_ratio)->stages, (*first)->stages);  // one op serves both
  pipeline::Policy in_place = Keep(0.5);
  in_place.placement = pipeline::Placement::kCompact;
  const auto compacted = cache.Resolve(in_place, Paged());
  ASSERT_TRUE(compacted.ok());
  EXPECT_NE((*compacted)->stages, (*first)->stages);
  pipeline::Availability read_only = Paged();
  read_only.read_only_pool = true;
  EXPECT_FALSE(cache.Resolve(Keep(0.5), read_only).ok());
  EXPECT_EQ(*cache.Resolve(Keep(0.5), Paged()), *first);
}

TEST(PolicyCache, ForgetsTheOneUsedLongestAgo) {
  PolicyCache cache(2);
  const auto first = *cache.Resolve(Keep(0.5), Paged());
  const auto second = *cache.Resolve(Keep(0.25), Paged());
  EXPECT_EQ(*cache.Resolve(Keep(0.5), Paged()), first);
  ASSERT_TRUE(cache.Resolve(Keep(0.125), Paged()).ok());
  EXPECT_EQ(*cache.Resolve(Keep(0.5), Paged()), first);
  EXPECT_NE(*cache.Resolve(Keep(0.25), Paged()), second);
}

}  // namespace
}  // namespace kvern::engine
