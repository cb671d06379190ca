// Admission, epochs, replay, deadlines, faults: what a caller can rely on.
#include "server/engine/engine.h"

#include <future>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/unit/server/engine/engine_fixture.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

using Answer = absl::StatusOr<CompressResult>;

// Keeps the worker inside its first sequence until Open.
class Gate {
 public:
  explicit Gate(FakeEvents* events) {
    events->on_sequence = [this](const SequenceResult&) {
      if (entered_.HasBeenNotified()) return;
      entered_.Notify();
      open_.WaitForNotification();
    };
  }
  ~Gate() { Open(); }
  void AwaitEntered() { entered_.WaitForNotification(); }
  void Open() {
    if (!open_.HasBeenNotified()) open_.Notify();
  }

 private:
  absl::Notification entered_;
  absl::Notification open_;
};

std::future<Answer> Send(Engine& engine, CompressJob job) {
  auto promise = std::make_shared<std::promise<Answer>>();
  std::future<Answer> future = promise->get_future();
  engine.Compress(std::move(job), [promise](Answer answer) { promise->set_value(answer); });
  return future;
}

TEST_F(EngineTest, RefusesTheCallThatFindsTheQueueFull) {
  Limits limits;
  limits.queued_calls = 1;
  Start(limits);
  Gate gate(&events_);
  auto running = Send(*engine_, Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("a")}));
  gate.AwaitEntered();
  auto waiting = Send(*engine_, Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("b")}));
  const Answer refused =
      engine_->CompressAndWait(Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("c")}));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused.status()), "QUEUE_FULL");
  EXPECT_EQ(engine_->Gauges().queue_depth, 1);
  EXPECT_EQ(events_.Rejected(Rejection::kQueueFull), 1);
  gate.Open();
  EXPECT_TRUE(running.get().ok());
  EXPECT_TRUE(waiting.get().ok());
}

TEST_F(EngineTest, CountsQueuedBytesOfTheRunningCallToo) {
  Limits limits;
  limits.queued_bytes = 100;
  Start(limits);
  Gate gate(&events_);
  CompressJob heavy = Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("a")});
  heavy.payload_bytes = 80;
  auto running = Send(*engine_, heavy);
  gate.AwaitEntered();
  const Answer refused = engine_->CompressAndWait(heavy);
  EXPECT_EQ(ReasonOf(refused.status()), "QUEUE_FULL") << refused.status();
  gate.Open();
  EXPECT_TRUE(running.get().ok());
}

TEST_F(EngineTest, ChangesNothingForACallWhoseDeadlinePassed) {
  const std::vector<std::byte> before = Snapshot();
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), {Paged("a")});
  job.deadline = absl::InfinitePast();
  EXPECT_TRUE(absl::IsDeadlineExceeded(engine_->CompressAndWait(job).status()));
  EXPECT_EQ(Snapshot(), before);
  EXPECT_EQ(events_.Rejected(Rejection::kDeadline), 1);
}

TEST_F(EngineTest, EndsACancelledCallThatWaitedWithoutAChange) {
  Gate gate(&events_);
  auto running = Send(*engine_, Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("a")}));
  gate.AwaitEntered();
  const std::vector<std::byte> before = Snapshot();
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), {Paged("b")});
  auto waiting = Send(*engine_, job);
  job.cancelled->store(true);
  gate.Open();
  EXPECT_TRUE(absl::IsCancelled(waiting.get().status()));
  EXPECT_EQ(Snapshot(), before);
  EXPECT_TRUE(running.get().ok());
}

TEST_F(EngineTest, SkipsTheRestOfACohortThatIsCancelledOnTheWay) {
  CompressJob job = Job(KeyNorm(6, Placement::kCopyTo), {Paged("a"), Paged("b")});
  PagedOf(job.sequences[1]).block_ids = {30, 31, 32, 33, 34};
  PagedOf(job.sequences[1]).destination_block_ids = {40, 41};
  events_.on_sequence = [cancelled = job.cancelled](const SequenceResult&) {
    cancelled->store(true);
  };
  const Answer answer = engine_->CompressAndWait(job);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->results[0].outcome, Outcome::kApplied);
  EXPECT_EQ(answer->results[1].outcome, Outcome::kSkipped);
  EXPECT_TRUE(absl::IsCancelled(answer->results[1].status));
  EXPECT_EQ(answer->results[1].epoch, 0u);
}

TEST_F(EngineTest, FollowsEpochsOfASequence) {
  SequenceJob sequence = Paged("a");
  EXPECT_EQ(RunOne(KeyNorm(6, Placement::kCopyTo), sequence).epoch, 1u);
  const SequenceResult stale = RunOne(KeyNorm(6, Placement::kCopyTo), sequence);
  EXPECT_EQ(stale.outcome, Outcome::kFailed);
  EXPECT_TRUE(absl::IsAborted(stale.status));
  EXPECT_EQ(ReasonOf(stale.status), "EPOCH_MISMATCH");
  EXPECT_EQ(events_.Counted("epoch"), 1);
  sequence.epoch = 9;
  EXPECT_EQ(RunOne(KeyNorm(6, Placement::kCopyTo), sequence).epoch, 10u);
  EXPECT_EQ(engine_->Release({"a", "unknown"}), 1);
  sequence.epoch = 0;
  EXPECT_EQ(RunOne(KeyNorm(6, Placement::kCopyTo), sequence).epoch, 1u);
}

TEST_F(EngineTest, RemembersPositionsPerHeadAndExtendsThemByAppendedTokens) {
  const SequenceResult first = RunOne(KeyNorm(6, Placement::kCompact), Paged("a"));
  ASSERT_EQ(first.outcome, Outcome::kApplied) << first.status;
  SequenceJob sequence = Paged("a");
  sequence.epoch = 1;
  sequence.logical_tokens = 21;
  PagedOf(sequence).block_ids = {9, 3, 12};
  PagedOf(sequence).num_tokens = 9;  // three tokens later
  CompressJob job = Job(KeyNorm(9, Placement::kIndicesOnly), {sequence});
  const Answer answer = engine_->CompressAndWait(job);
  ASSERT_TRUE(answer.ok()) << answer.status();
  const SequenceResult& second = answer->results[0];
  ASSERT_EQ(second.outcome, Outcome::kNoop) << second.status;
  ASSERT_EQ(second.positions.size(), static_cast<size_t>(kLayers * kKvHeads * 9));
  for (int64_t row = 0; row < kLayers * kKvHeads; ++row) {
    EXPECT_EQ(second.positions[row * 9], 0);
    EXPECT_EQ(second.positions[row * 9 + 5], 17);
    EXPECT_EQ(second.positions[row * 9 + 6], 18);
    EXPECT_EQ(second.positions[row * 9 + 8], 20);
  }
}

TEST_F(EngineTest, TakesNoPositionsThatWereRememberedOfAnotherPool) {
  AddPool("narrow", [](memory::PoolSpec* spec) { spec->layers.resize(1); });
  SequenceJob sequence = Paged("a");
  PagedOf(sequence).pool = "narrow";
  ASSERT_EQ(RunOne(KeyNorm(6, Placement::kCompact), sequence).outcome, Outcome::kApplied);
  sequence.epoch = 1;
  PagedOf(sequence).pool = "pool";  // twice the rows
  PagedOf(sequence).block_ids = {9, 3};
  PagedOf(sequence).num_tokens = 6;
  const SequenceResult result = RunOne(KeyNorm(6, Placement::kIndicesOnly), sequence);
  ASSERT_EQ(result.outcome, Outcome::kNoop) << result.status;
  EXPECT_EQ(result.logical_tokens, 6);
  ASSERT_EQ(result.positions.size(), static_cast<size_t>(kLayers * kKvHeads * 6));
  for (size_t at = 0; at < result.positions.size(); ++at) {
    EXPECT_EQ(result.positions[at], static_cast<int32_t>(at % 6));
  }
}

TEST_F(EngineTest, AnswersAReplayWithoutRunningAgain) {
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), {Paged("a")});
  job.request_id = "r1";
  job.request_hash = 5;
  const Answer first = engine_->CompressAndWait(job);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->replayed);
  const std::vector<std::byte> after = Snapshot();
  const Answer second = engine_->CompressAndWait(job);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_TRUE(second->replayed);
  EXPECT_EQ(second->results[0].outcome, Outcome::kApplied);
  EXPECT_EQ(second->results[0].block_ids, first->results[0].block_ids);
  EXPECT_EQ(Snapshot(), after);
  EXPECT_EQ(events_.Counted("replay"), 1);
  job.request_hash = 6;
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->CompressAndWait(job).status()));
  job.peer = "uid:2000";
  EXPECT_EQ(ReasonOf(engine_->CompressAndWait(job)->results[0].status), "EPOCH_MISMATCH");
}

TEST_F(EngineTest, GivesADuplicateTheAnswerOfTheCallThatRuns) {
  Gate gate(&events_);
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), {Paged("a")});
  job.request_id = "r1";
  auto first = Send(*engine_, job);
  gate.AwaitEntered();
  auto second = Send(*engine_, job);
  gate.Open();
  const Answer answer = first.get();
  const Answer duplicate = second.get();
  ASSERT_TRUE(answer.ok() && duplicate.ok());
  EXPECT_FALSE(answer->replayed);
  EXPECT_TRUE(duplicate->replayed);
  EXPECT_EQ(duplicate->results[0].epoch, 1u);
  EXPECT_EQ(events_.Outcomes(Outcome::kApplied), 1);
}

TEST_F(EngineTest, RunsADuplicateWhenTheFirstCallIsCancelled) {
  Gate gate(&events_);
  auto blocker = Send(*engine_, Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("x")}));
  gate.AwaitEntered();
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), {Paged("a")});
  job.request_id = "r1";
  auto first = Send(*engine_, job);
  CompressJob again = job;
  again.cancelled = std::make_shared<std::atomic<bool>>(false);
  auto second = Send(*engine_, again);
  job.cancelled->store(true);
  gate.Open();
  EXPECT_TRUE(absl::IsCancelled(first.get().status()));
  const Answer answer = second.get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->results[0].outcome, Outcome::kApplied);
  EXPECT_TRUE(blocker.get().ok());
}

TEST_F(EngineTest, LetsTheGoodSequencesOfACohortPassABadOne) {
  CompressJob job =
      Job(KeyNorm(6, Placement::kCopyTo), {Paged("good"), Paged("bad"), Paged("lost")});
  PagedOf(job.sequences[1]).block_ids = {30, 30, 31, 32, 33};
  PagedOf(job.sequences[1]).destination_block_ids = {50, 51};
  PagedOf(job.sequences[2]).pool = "unknown";
  const Answer answer = engine_->CompressAndWait(job);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->results[0].outcome, Outcome::kApplied);
  EXPECT_EQ(answer->results[1].outcome, Outcome::kFailed);
  EXPECT_TRUE(absl::IsInvalidArgument(answer->results[1].status));
  EXPECT_EQ(FieldOf(answer->results[1].status), "sequences[1].paged.block_ids");
  EXPECT_EQ(ReasonOf(answer->results[2].status), "POOL_EXPIRED");
}

TEST_F(EngineTest, RefusesACohortThatSharesIdsOrWritableBlocks) {
  CompressJob twice = Job(KeyNorm(6, Placement::kIndicesOnly), {Paged("a"), Paged("a")});
  EXPECT_EQ(FieldOf(engine_->CompressAndWait(twice).status()), "sequences[1].sequence_id");
  CompressJob shared = Job(KeyNorm(6, Placement::kCompact), {Paged("a"), Paged("b")});
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->CompressAndWait(shared).status()));
  CompressJob target = Job(KeyNorm(6, Placement::kCopyTo), {Paged("a"), Paged("b")});
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->CompressAndWait(target).status()));
  PagedOf(target.sequences[1]).destination_block_ids = {30, 31};
  EXPECT_TRUE(engine_->CompressAndWait(target).ok());
  CompressJob prefix = Job(KeyNorm(14, Placement::kCompact), {Paged("c"), Paged("d")});
  PagedOf(prefix.sequences[1]).block_ids = {9, 3, 50, 51, 52};
  EXPECT_TRUE(absl::IsInvalidArgument(engine_->CompressAndWait(prefix).status()));
  for (SequenceJob& sequence : prefix.sequences) sequence.readonly_prefix_tokens = 8;
  const Answer answer = engine_->CompressAndWait(prefix);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->results[1].outcome, Outcome::kApplied) << answer->results[1].status;
}

TEST_F(EngineTest, RefusesAnAnswerAboveTheResponseLimitBeforeItMoves) {
  Limits limits;
  limits.max_response_bytes = 5000;
  Start(limits);
  const std::vector<std::byte> before = Snapshot();
  CompressJob job = Job(KeyNorm(16, Placement::kCompact), {Paged("a")});
  job.fields.by_default = false;
  job.fields.kept = job.fields.positions = job.fields.scores = true;
  const Answer answer = engine_->CompressAndWait(job);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(absl::IsResourceExhausted(answer->results[0].status));
  EXPECT_EQ(Snapshot(), before);
}

TEST_F(EngineTest, RefusesPositionsThatDoNotFit) {
  SequenceJob sequence = Paged("a");
  sequence.positions.assign(18, 3);
  const SequenceResult flat = RunOne(KeyNorm(6, Placement::kIndicesOnly), sequence);
  EXPECT_EQ(FieldOf(flat.status), "sequences[0].positions");
  sequence.positions.assign(17, 0);
  EXPECT_TRUE(
      absl::IsInvalidArgument(RunOne(KeyNorm(6, Placement::kIndicesOnly), sequence).status));
  sequence.positions.clear();
  sequence.logical_tokens = 17;
  EXPECT_EQ(FieldOf(RunOne(KeyNorm(6, Placement::kIndicesOnly), sequence).status),
            "sequences[0].num_logical_tokens");
}

TEST_F(EngineTest, DrainsWhatItTookAndRefusesTheRest) {
  Gate gate(&events_);
  auto running = Send(*engine_, Job(KeyNorm(6, Placement::kCopyTo), {Paged("a")}));
  gate.AwaitEntered();
  EXPECT_FALSE(engine_->Drain(absl::ZeroDuration()));
  const Answer refused =
      engine_->CompressAndWait(Job(KeyNorm(6, Placement::kCopyTo), {Paged("b")}));
  EXPECT_TRUE(absl::IsUnavailable(refused.status()));
  EXPECT_EQ(events_.Rejected(Rejection::kDraining), 1);
  gate.Open();
  EXPECT_TRUE(engine_->Drain(absl::InfiniteDuration()));
  EXPECT_TRUE(running.get().ok());
}

TEST_F(EngineTest, AnswersQueuedCallsWhenItEnds) {
  Gate gate(&events_);
  auto running = Send(*engine_, Job(KeyNorm(6, Placement::kCopyTo), {Paged("a")}));
  gate.AwaitEntered();
  auto waiting = Send(*engine_, Job(KeyNorm(6, Placement::kCopyTo), {Paged("b")}));
  std::thread end([this] { engine_.reset(); });
  gate.Open();
  end.join();
  EXPECT_TRUE(running.get().ok());
  // Either it ran before the end began, or it was refused by it.
  const Answer last = waiting.get();
  EXPECT_TRUE(last.ok() || absl::IsUnavailable(last.status()) || absl::IsCancelled(last.status()))
      << last.status();
}

TEST_F(EngineTest, LeavesALegalViewBehindEveryFailpoint) {
  for (const FailpointInfo& info : Failpoints()) {
    SCOPED_TRACE(info.name);
    FillPool(/*seed=*/3);
    SetFailpoint(info.point, FailAction::kError);
    Placement placement = Placement::kCopyTo;
    if (info.point == Failpoint::kWithinCompactMove) placement = Placement::kCompact;
    if (info.point == Failpoint::kBeforeStoreCommit) placement = Placement::kToStore;
    const std::vector<std::byte> before = Snapshot();
    const SequenceResult result = RunOne(KeyNorm(6, placement), Paged(info.name));
    ClearFailpoints();
    switch (info.effect) {
      case FailEffect::kUnchanged: {
        EXPECT_EQ(result.outcome, Outcome::kFailed);
        EXPECT_TRUE(result.block_ids.empty());
        // Destination blocks were the caller's to lose; the old view is not.
        ExpectOnlyWritten(before, Snapshot(), {20, 21});
        EXPECT_FALSE(engine_->Store().Find(info.name).ok());
        const SequenceResult again = RunOne(KeyNorm(6, placement), Paged(info.name));
        EXPECT_EQ(again.outcome, Outcome::kApplied) << again.status;
        break;
      }
      case FailEffect::kPoisoned:
        EXPECT_TRUE(absl::IsDataLoss(result.status)) << result.status;
        EXPECT_EQ(ReasonOf(result.status), "SEQUENCE_POISONED");
        EXPECT_EQ(events_.Counted("poisoned"), 1);
        break;
      case FailEffect::kApplied:
        EXPECT_EQ(result.outcome, Outcome::kApplied);
        EXPECT_EQ(result.epoch, 1u);
        break;
    }
  }
}

TEST_F(EngineTest, TellsPoolsOfAClosedConnectionExpired) {
  engine_->Attachments().Close(kConnection);
  EXPECT_EQ(events_.Counted("peer_died"), 1);
  EXPECT_EQ(ReasonOf(RunOne(KeyNorm(6, Placement::kIndicesOnly), Paged("a")).status),
            "POOL_EXPIRED");
}

TEST_F(EngineTest, NamesTheStagesThatRan) {
  ASSERT_EQ(RunOne(KeyNorm(6, Placement::kCopyTo), Paged("a")).outcome, Outcome::kApplied);
  const std::set<std::string> stages = events_.Stages();
  for (const char* stage : {"queue/", "plan/uniform", "score/key_norm", "select/topk"}) {
    EXPECT_TRUE(stages.contains(stage)) << stage;
  }
}

TEST_F(EngineTest, RefusesAModelItDoesNotKnow) {
  CompressJob job = Job(KeyNorm(6, Placement::kCopyTo), {Paged("a")});
  job.model = "other";
  EXPECT_EQ(ReasonOf(engine_->CompressAndWait(job).status()), "MODEL_UNKNOWN");
}

}  // namespace
}  // namespace kvern::engine
