// Sequences that run together: what they share, and what they must not do to each other.
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/support/batching_ref.h"
#include "tests/unit/server/engine/engine_fixture.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

// An engine on a backend whose ops serve cohorts.
class RunCohortTest : public EngineTest {
 protected:
  RunCohortTest() { Restart(/*batching=*/true); }

  void Restart(bool batching) {
    if (batching) {
      make_backend_ = [this] {
        auto backend = std::make_unique<support::BatchingRef>();
        backend_ = backend.get();
        return backend;
      };
    } else {
      make_backend_ = [] { return MakeBackend({.name = "ref"}).value(); };
    }
    Start(Limits());
  }

  // Sequences of 10, 11, 12, ... tokens in blocks of their own, with blocks to copy to.
  static std::vector<SequenceJob> Some(int count) {
    std::vector<SequenceJob> sequences;
    for (int at = 0; at < count; ++at) {
      SequenceJob sequence;
      sequence.sequence_id = absl::StrCat("s", at);
      PagedSource paged;
      paged.pool = "pool";
      paged.num_tokens = 10 + at;
      for (uint32_t block = 0; block < 4; ++block) {
        paged.block_ids.push_back(6 * at + (block + at) % 4);
      }
      paged.block_ids.resize((paged.num_tokens + kBlockTokens - 1) / kBlockTokens);
      paged.destination_block_ids = {6u * at + 4, 6u * at + 5};
      sequence.source = paged;
      sequences.push_back(sequence);
    }
    return sequences;
  }

  CompressResult Run(const CompressJob& job) {
    const auto answer = engine_->CompressAndWait(job);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? *answer : CompressResult();
  }

  static CompressJob WithAll(CompressJob job) {
    job.fields.by_default = false;
    job.fields.kept = job.fields.positions = job.fields.scores = true;
    job.fields.k = job.fields.v = job.fields.packed = true;
    return job;
  }

  // Makes the op fail from now on, or once.
  void FailOp(const std::string& name, const absl::Status& status, int times = 1 << 30) {
    backend_->before = [=, left = std::make_shared<int>(times)](const std::string& op, size_t) {
      if (op != name || *left == 0) return absl::OkStatus();
      --*left;
      return status;
    };
  }

  static std::vector<Outcome> Outcomes(const CompressResult& answer) {
    std::vector<Outcome> outcomes;
    for (const SequenceResult& result : answer.results) outcomes.push_back(result.outcome);
    return outcomes;
  }

  support::BatchingRef* backend_ = nullptr;
};

pipeline::Policy Packed(pipeline::Policy policy) {
  policy.k_codec = "i8t+rm";
  policy.v_codec = "i8t";
  return policy;
}

TEST_F(RunCohortTest, CallsAsManyOpsForManySequencesAsForOne) {
  for (const Placement placement :
       {Placement::kCopyTo, Placement::kCompact, Placement::kToStore, Placement::kIndicesOnly}) {
    for (const bool packs : {false, true}) {
      if (packs && placement != Placement::kToStore) continue;
      const pipeline::Policy policy = packs ? Packed(KeyNorm(6, placement)) : KeyNorm(6, placement);
      Restart(true);
      ASSERT_EQ(Outcomes(Run(Job(policy, Some(1)))), std::vector(1, Outcome::kApplied));
      const std::map<std::string, int> one = backend_->calls;
      Restart(true);
      ASSERT_EQ(Outcomes(Run(Job(policy, Some(6)))), std::vector(6, Outcome::kApplied));
      EXPECT_EQ(backend_->calls, one);
      EXPECT_EQ(one.at("RowNorms"), 1);
      EXPECT_EQ(backend_->Buffers(), 0u);
    }
  }
}

TEST_F(RunCohortTest, GivesWhatABackendWithoutCohortsGives) {
  for (const Placement placement :
       {Placement::kCopyTo, Placement::kCompact, Placement::kToStore, Placement::kIndicesOnly}) {
    for (const bool renumbers : {false, true}) {
      SCOPED_TRACE(absl::StrCat(static_cast<int>(placement), renumbers ? " renumbered" : ""));
      CompressResult answers[2];
      std::vector<std::byte> memory[2];
      for (const bool batching : {false, true}) {
        Restart(batching);
        pipeline::Policy policy = KeyNorm(6, placement);
        if (placement == Placement::kToStore) policy = Packed(policy);
        if (renumbers) policy.positions = pipeline::PositionMode::kRenumber;
        CompressJob job = WithAll(Job(policy, Some(6)));
        PagedOf(job.sequences[2]).pool = "unknown";
        job.sequences[4].policy = KeyNorm(40, placement);  // all of it stays
        answers[batching] = Run(job);
        memory[batching] = Snapshot();
      }
      EXPECT_EQ(memory[0], memory[1]);
      EXPECT_EQ(Outcomes(answers[0]), Outcomes(answers[1]));
      for (size_t at = 0; at < answers[0].results.size(); ++at) {
        const SequenceResult& alone = answers[0].results[at];
        const SequenceResult& together = answers[1].results[at];
        EXPECT_EQ(alone.status, together.status);
        EXPECT_EQ(alone.epoch, together.epoch);
        EXPECT_EQ(alone.block_ids, together.block_ids);
        EXPECT_EQ(alone.kept, together.kept);
        EXPECT_EQ(alone.positions, together.positions);
        EXPECT_EQ(alone.moved_bytes, together.moved_bytes);
        EXPECT_EQ(alone.k_error, together.k_error);
        EXPECT_EQ(alone.publishable_prefix_tokens, together.publishable_prefix_tokens);
        ASSERT_EQ(alone.scores.size(), together.scores.size());
        if (alone.scores.empty()) continue;
        EXPECT_EQ(std::memcmp(alone.scores.data(), together.scores.data(), 4 * alone.scores.size()),
                  0);
      }
    }
  }
}

TEST_F(RunCohortTest, ReturnsInlineBytesOfManySequences) {
  std::vector<SequenceJob> sequences;
  const int64_t bytes = kLayers * kKvHeads * 9 * kRowBytes;
  const std::vector<std::byte> sent = Snapshot();
  for (int at = 0; at < 3; ++at) {
    SequenceJob sequence;
    sequence.sequence_id = absl::StrCat("inline", at);
    InlineSource source;
    source.layers = kLayers;
    source.kv_heads = kKvHeads;
    source.tokens = 9;
    source.head_dim = kHeadDim;
    source.k = sent.data() + 2 * at * bytes;
    source.v = source.k + bytes;
    sequence.source = source;
    sequences.push_back(sequence);
  }
  for (const bool packs : {false, true}) {
    const pipeline::Policy policy =
        packs ? Packed(KeyNorm(5, Placement::kReturn)) : KeyNorm(5, Placement::kReturn);
    Restart(false);
    const CompressResult alone = Run(Job(policy, sequences));
    Restart(true);
    const CompressResult together = Run(Job(policy, sequences));
    ASSERT_EQ(Outcomes(together), std::vector(3, Outcome::kApplied));
    for (int at = 0; at < 3; ++at) {
      EXPECT_EQ(together.results[at].k, alone.results[at].k);
      EXPECT_EQ(together.results[at].v, alone.results[at].v);
      ASSERT_EQ(together.results[at].packed.has_value(), packs);
      if (!packs) continue;
      EXPECT_EQ(together.results[at].packed->blocks, alone.results[at].packed->blocks);
    }
  }
}

TEST_F(RunCohortTest, LeavesTheNeighboursOfABadSequenceAlone) {
  CompressJob job = Job(KeyNorm(6, Placement::kCopyTo), Some(5));
  PagedOf(job.sequences[0]).destination_block_ids = {4};
  job.sequences[1].edge_status = absl::InvalidArgumentError("edge");
  PagedOf(job.sequences[3]).pool = "unknown";
  const CompressResult answer = Run(job);
  EXPECT_EQ(ReasonOf(answer.results[0].status), "DESTINATION_TOO_SMALL");
  EXPECT_EQ(Outcomes(answer), (std::vector{Outcome::kFailed, Outcome::kFailed, Outcome::kApplied,
                                           Outcome::kFailed, Outcome::kApplied}));
}

TEST_F(RunCohortTest, FindsTheSequenceThatAStageCannotJudge) {
  CompressJob job = Job(KeyNorm(8, Placement::kCopyTo), Some(5));
  job.policy.scorers = {{"snapkv", {{"window", "4"}}}};
  for (SequenceJob& sequence : job.sequences) {
    // One of them has fewer queries than the window.
    sequence.side.window = &sequence == &job.sequences[3] ? 3 : 4;
    sequence.side.q_window.assign(kLayers * 4 * sequence.side.window * kHeadDim, 0.5f);
  }
  const CompressResult answer = Run(job);
  EXPECT_EQ(Outcomes(answer), (std::vector{Outcome::kApplied, Outcome::kApplied, Outcome::kApplied,
                                           Outcome::kFailed, Outcome::kApplied}));
  EXPECT_EQ(ReasonOf(answer.results[3].status), "INPUT_MISSING");
  EXPECT_EQ(backend_->Buffers(), 0u);
}

TEST_F(RunCohortTest, RunsAsManyAtOnceAsTheDeviceHasRoomFor) {
  for (const char* op : {"Stage", "RowNorms", "Gather"}) {
    Restart(true);
    backend_->before = [this, op](const std::string& asked, size_t cohort) {
      const size_t room = 2;
      const bool full = asked == "Stage" ? backend_->Buffers() >= 4 : cohort > 2 * room;
      return op == asked && full ? absl::ResourceExhaustedError("scratch: full") : absl::OkStatus();
    };
    const CompressResult answer = Run(Job(KeyNorm(6, Placement::kCopyTo), Some(6)));
    EXPECT_EQ(Outcomes(answer), std::vector(6, Outcome::kApplied)) << op;
  }
}

TEST_F(RunCohortTest, FailsAllThatMovedTogetherAndLeavesTheirOldViews) {
  const std::vector<std::byte> before = Snapshot();
  for (const char* op : {"Gather", "Finish", "RowNorms"}) {
    Restart(true);
    FailOp(op, absl::InternalError("device: no answer"));
    CompressJob job = Job(KeyNorm(6, Placement::kCopyTo), Some(3));
    const CompressResult answer = Run(job);
    EXPECT_EQ(Outcomes(answer), std::vector(3, Outcome::kFailed)) << op;
    std::set<uint32_t> fresh;
    for (const SequenceJob& sequence : job.sequences) {
      const PagedSource& paged = std::get<PagedSource>(sequence.source);
      fresh.insert(paged.destination_block_ids.begin(), paged.destination_block_ids.end());
    }
    ExpectOnlyWritten(before, Snapshot(), fresh);
    backend_->before = nullptr;
    EXPECT_EQ(Outcomes(Run(job)), std::vector(3, Outcome::kApplied));
  }
}

TEST_F(RunCohortTest, PublishesNothingInTheStoreThatAFaultLeftUnfinished) {
  FailOp("Encode", absl::InternalError("device: no answer"));
  EXPECT_EQ(Outcomes(Run(Job(Packed(KeyNorm(6, Placement::kToStore)), Some(3)))),
            std::vector(3, Outcome::kFailed));
  EXPECT_TRUE(engine_->Store().List().empty());
  EXPECT_EQ(engine_->Store().UsedBytes(), 0);
}

TEST_F(RunCohortTest, PoisonsThoseThatMovedInPlaceTogetherAndNobodyElse) {
  for (const char* op : {"Gather", "Finish"}) {
    Restart(true);
    CompressJob job = Job(KeyNorm(6, Placement::kCompact), Some(5));
    job.sequences[1].policy = KeyNorm(6, Placement::kCopyTo);
    PagedOf(job.sequences[4]).pool = "unknown";
    FailOp(op, absl::InternalError("device: no answer"), /*times=*/1);
    const CompressResult answer = Run(job);
    for (const size_t at : {0, 2, 3}) {
      EXPECT_TRUE(absl::IsDataLoss(answer.results[at].status)) << answer.results[at].status;
      EXPECT_EQ(ReasonOf(answer.results[at].status), "SEQUENCE_POISONED");
      EXPECT_EQ(answer.results[at].epoch, 0u);
    }
    EXPECT_EQ(answer.results[1].outcome, Outcome::kApplied) << answer.results[1].status;
    EXPECT_FALSE(absl::IsDataLoss(answer.results[4].status));
  }
}

TEST_F(RunCohortTest, SkipsAllThatAStopFindsBeforeTheyMoved) {
  const std::vector<std::byte> before = Snapshot();
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), Some(4));
  backend_->before = [cancelled = job.cancelled](const std::string& op, size_t) {
    if (op == "RowNorms") cancelled->store(true);
    return absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsCancelled(engine_->CompressAndWait(job).status()));
  EXPECT_EQ(Snapshot(), before);
  EXPECT_EQ(events_.Outcomes(Outcome::kSkipped), 4);
}

TEST_F(RunCohortTest, EndsAMoveInPlaceThatNobodyWantsAnyMore) {
  CompressJob job = Job(KeyNorm(6, Placement::kCompact), Some(3));
  backend_->before = [cancelled = job.cancelled](const std::string& op, size_t) {
    if (op == "Gather") cancelled->store(true);
    return absl::OkStatus();
  };
  EXPECT_EQ(Outcomes(Run(job)), std::vector(3, Outcome::kApplied));
}

TEST_F(RunCohortTest, LetsASequenceReadWhatAnEarlierOneOfItsCallStored) {
  CompressJob job = Job(KeyNorm(8, Placement::kToStore), Some(2));
  SequenceJob reader;
  reader.sequence_id = "reader";
  reader.epoch = 1;
  reader.source = StoredSource{"s1"};
  reader.policy = KeyNorm(5, Placement::kIndicesOnly);
  job.sequences.push_back(reader);
  EXPECT_EQ(Outcomes(Run(job)), std::vector(3, Outcome::kApplied));
}

TEST_F(RunCohortTest, TakesNoCallOnceTheDeviceIsLost) {
  EXPECT_TRUE(engine_->Health().ok());
  backend_->health = absl::InternalError("device: fell off the bus");
  EXPECT_FALSE(engine_->Health().ok());
  const auto answer = engine_->CompressAndWait(Job(KeyNorm(6, Placement::kCopyTo), Some(1)));
  EXPECT_TRUE(absl::IsUnavailable(answer.status())) << answer.status();
  EXPECT_EQ(ReasonOf(answer.status()), "DEVICE_LOST");
  EXPECT_EQ(events_.Rejected(Rejection::kDraining), 0);
}

}  // namespace
}  // namespace kvern::engine
