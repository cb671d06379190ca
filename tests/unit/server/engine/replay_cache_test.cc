// How long answers live, how many, and for whom.
#include "server/engine/replay_cache.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace kvern::engine {
namespace {

using Begun = ReplayCache::Begun;

CompressJob JobOf(const std::string& request_id) {
  CompressJob job;
  job.peer = "tcp";
  job.request_id = request_id;
  job.sequences.resize(1);
  job.sequences[0].sequence_id = "s";
  return job;
}

CompressResult AnswerFor(const std::string& sequence_id, size_t bytes) {
  CompressResult answer;
  answer.results.resize(1);
  answer.results[0].sequence_id = sequence_id;
  answer.results[0].kept.resize(bytes / sizeof(int32_t));
  return answer;
}

Begun BeginNow(ReplayCache& cache, const CompressJob& job, absl::Time now) {
  const auto start = cache.Begin(job, now, [](const auto&) {});
  EXPECT_TRUE(start.ok()) << start.status();
  return start->begun;
}

TEST(ReplayCache, ForgetsAnAnswerAfterItsTime) {
  ReplayCache cache{Limits()};
  const absl::Time start = absl::UnixEpoch();
  const CompressJob job = JobOf("r");
  EXPECT_EQ(BeginNow(cache, job, start), Begun::kRun);
  cache.Finish(job, start, AnswerFor("s", 0));
  EXPECT_EQ(BeginNow(cache, job, start + absl::Seconds(60)), Begun::kAnswered);
  EXPECT_EQ(BeginNow(cache, job, start + absl::Seconds(61)), Begun::kRun);
}

TEST(ReplayCache, DropsTheOldestAboveItsNumberAndItsBytes) {
  Limits limits;
  limits.replay_answers = 2;
  limits.replay_bytes = 12000;
  ReplayCache cache(limits);
  const absl::Time now = absl::UnixEpoch();
  for (const char* id : {"a", "b", "c"}) {
    BeginNow(cache, JobOf(id), now);
    cache.Finish(JobOf(id), now, AnswerFor("s", 0));
  }
  EXPECT_EQ(BeginNow(cache, JobOf("b"), now), Begun::kAnswered);
  BeginNow(cache, JobOf("large"), now);
  cache.Finish(JobOf("large"), now, AnswerFor("s", 8000));
  EXPECT_EQ(BeginNow(cache, JobOf("large"), now), Begun::kAnswered);
  EXPECT_EQ(cache.Evictions(), 2);
  BeginNow(cache, JobOf("huge"), now);
  cache.Finish(JobOf("huge"), now, AnswerFor("s", 20000));
  EXPECT_EQ(BeginNow(cache, JobOf("huge"), now), Begun::kRun);
  EXPECT_EQ(BeginNow(cache, JobOf("a"), now), Begun::kRun);
}

TEST(ReplayCache, CountsMemoryThatALargerCallLeft) {
  Limits limits;
  limits.replay_bytes = 64 << 10;
  ReplayCache cache(limits);
  const absl::Time now = absl::UnixEpoch();
  for (int call = 0; call < 8; ++call) {
    { ScratchVector<int32_t> large(200000); }  // what the next vector of its kind may take
    const std::string id = absl::StrCat("r", call);
    BeginNow(cache, JobOf(id), now);
    CompressResult answer = AnswerFor("s", 0);
    answer.results[0].kept.assign(100, 1);
    cache.Finish(JobOf(id), now, answer);
    EXPECT_EQ(BeginNow(cache, JobOf(id), now), Begun::kAnswered);
  }
  EXPECT_EQ(cache.Evictions(), 0);
}

TEST(ReplayCache, KeepsNoFailedCallAndHandsBackWhoWaited) {
  ReplayCache cache{Limits()};
  const absl::Time now = absl::UnixEpoch();
  BeginNow(cache, JobOf("r"), now);
  EXPECT_EQ(BeginNow(cache, JobOf("r"), now), Begun::kAttached);
  EXPECT_EQ(cache.Finish(JobOf("r"), now, absl::CancelledError("")).size(), 1u);
  EXPECT_EQ(BeginNow(cache, JobOf("r"), now), Begun::kRun);
}

TEST(ReplayCache, BoundsThoseWhoWait) {
  Limits limits;
  limits.queued_calls = 1;
  ReplayCache cache(limits);
  const absl::Time now = absl::UnixEpoch();
  BeginNow(cache, JobOf("r"), now);
  EXPECT_EQ(BeginNow(cache, JobOf("r"), now), Begun::kAttached);
  EXPECT_TRUE(absl::IsResourceExhausted(cache.Begin(JobOf("r"), now, [](const auto&) {}).status()));
}

TEST(ReplayCache, ForgetsAnswersOfReleasedSequences) {
  ReplayCache cache{Limits()};
  const absl::Time now = absl::UnixEpoch();
  BeginNow(cache, JobOf("r"), now);
  cache.Finish(JobOf("r"), now, AnswerFor("s", 0));
  cache.Forget({"other"});
  EXPECT_EQ(BeginNow(cache, JobOf("r"), now), Begun::kAnswered);
  cache.Forget({"s"});
  EXPECT_EQ(BeginNow(cache, JobOf("r"), now), Begun::kRun);
}

TEST(ReplayCache, TakesOnlyNamedCallsWithoutInlineBytes) {
  CompressJob job = JobOf("r");
  EXPECT_TRUE(ReplayCache::Takes(job));
  job.sequences[0].source = InlineSource();
  EXPECT_FALSE(ReplayCache::Takes(job));
  EXPECT_FALSE(ReplayCache::Takes(JobOf("")));
}

}  // namespace
}  // namespace kvern::engine
