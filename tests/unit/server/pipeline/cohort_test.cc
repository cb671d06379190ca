// Cohorts: the same answers as one by one, and as many op calls as for one sequence.
#include <algorithm>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/support/batching_ref.h"
#include "tests/unit/server/pipeline/packed_sequence.h"

namespace kvern::pipeline {
namespace {

using Sequences = std::vector<std::unique_ptr<LiveSequence>>;

// Of different tokens and layers.
Sequences ThreeSequences() {
  Sequences sequences;
  for (const int64_t layers : {1, 3, 2}) {
    sequences.push_back(std::make_unique<LiveSequence>(
        F32({.layers = layers, .kv_heads = 2, .tokens = 60 + 20 * layers, .head_dim = 16}),
        /*seed=*/100 * layers));
  }
  return sequences;
}

std::vector<KeepTask> TasksOf(const Sequences& sequences, const ResolvedPolicy& policy) {
  std::vector<KeepTask> tasks;
  for (const auto& sequence : sequences) {
    tasks.push_back({.input = &sequence->input(), .policy = &policy, .want_scores = true});
  }
  return tasks;
}

std::vector<PolicyWords> Policies() {
  std::vector<PolicyWords> policies;
  for (const std::vector<std::string>& scorers : std::vector<std::vector<std::string>>{
           {"key_norm"},
           {"value_norm"},
           {"external"},
           {"snapkv:window=6"},
           {"random", "keydiff:unrotate"},
           {"expected_attention:rank=4,log", "attention_mass", "triattention"}}) {
    for (const char* selector : {"topk", "diverse:share=heads", "topk:share=all", "sink_recent"}) {
      PolicyWords words;
      words.scorers = scorers;
      words.selector = selector;
      policies.push_back(words);
    }
  }
  return policies;
}

template <class T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

std::vector<KeepPlan> Plans(Backend& backend, const Sequences& sequences,
                            const ResolvedPolicy& policy) {
  auto outcomes = PlanKeep(backend, TasksOf(sequences, policy));
  EXPECT_TRUE(outcomes.ok()) << outcomes.status().ToString();
  std::vector<KeepPlan> plans;
  for (size_t at = 0; outcomes.ok() && at < outcomes->size(); ++at) {
    EXPECT_TRUE((*outcomes)[at].ok()) << (*outcomes)[at].status().ToString();
    plans.push_back(*std::move((*outcomes)[at]));
  }
  return plans;
}

TEST(Cohort, PlansEachSequenceAsIfItWereAlone) {
  const Sequences sequences = ThreeSequences();
  const std::unique_ptr<Backend> ref = RefBackend();
  for (const PolicyWords& words : Policies()) {
    SCOPED_TRACE(absl::StrCat(words.scorers[0], " ", words.selector));
    const ResolvedPolicy policy = PolicyOf(words);
    support::BatchingRef batching;
    const std::vector<KeepPlan> together = Plans(batching, sequences, policy);
    ASSERT_EQ(together.size(), sequences.size());
    for (size_t at = 0; at < sequences.size(); ++at) {
      const KeepPlan alone = PlanKeep(*ref, sequences[at]->input(), policy).value();
      EXPECT_EQ(together[at].keep.tokens, alone.keep.tokens);
      EXPECT_TRUE(SameBits(together[at].scores, alone.scores));
      EXPECT_EQ(together[at].nan_scores, alone.nan_scores);
      EXPECT_EQ(together[at].kept_positions, alone.kept_positions);
    }
  }
}

TEST(Cohort, CallsEachOpOnceHoweverManyLayersHeadsAndSequences) {
  LiveSequence small(F32({.layers = 1, .kv_heads = 1, .tokens = 90, .head_dim = 16}));
  const Sequences many = ThreeSequences();
  std::vector<PolicyWords> policies = Policies();
  policies[0].k_codec = "i8t+rm";
  policies[0].v_codec = "lm4";
  for (PolicyWords& words : policies) {
    for (const PositionMode positions : {PositionMode::kKeepLogical, PositionMode::kRenumber}) {
      words.positions = positions;
      SCOPED_TRACE(absl::StrCat(words.scorers[0], " ", words.selector));
      const ResolvedPolicy policy = PolicyOf(words);
      support::BatchingRef one, all;
      const KeepPlan plan = PlanKeep(one, small.input(), policy).value();
      ASSERT_TRUE(Pack(one, small.input(), policy, plan, {}).ok());
      const std::vector<KeepPlan> plans = Plans(all, many, policy);
      std::vector<PackTask> tasks;
      for (size_t at = 0; at < many.size(); ++at) {
        tasks.push_back({&many[at]->input(), &policy, &plans[at]});
      }
      ASSERT_TRUE(Pack(all, tasks).ok());
      EXPECT_EQ(all.calls, one.calls);
      for (const auto& [op, calls] : all.calls) {
        EXPECT_LE(calls, op == "Blend" ? 2 : 1) << op;
      }
    }
  }
}

TEST(Cohort, GivesASequenceThatCannotBePlannedItsOwnError) {
  const Sequences sequences = ThreeSequences();
  sequences[1]->side().q_window.clear();
  PolicyWords words;
  words.scorers = {"snapkv:window=6"};
  const ResolvedPolicy policy = PolicyOf(words);
  support::BatchingRef backend;
  const auto outcomes = PlanKeep(backend, TasksOf(sequences, policy));
  ASSERT_TRUE(outcomes.ok()) << outcomes.status().ToString();
  EXPECT_TRUE((*outcomes)[0].ok());
  EXPECT_EQ(ReasonOf((*outcomes)[1].status()), "INPUT_MISSING");
  EXPECT_TRUE((*outcomes)[2].ok());
}

TEST(Cohort, FailsAsAWholeForWhatAnOpAnswers) {
  const Sequences sequences = ThreeSequences();
  const ResolvedPolicy policy = PolicyOf({});
  support::BatchingRef backend;
  backend.before = [](const std::string& op, size_t) {
    return op == "TopK" ? absl::InternalError("TopK: no answer") : absl::OkStatus();
  };
  EXPECT_EQ(PlanKeep(backend, TasksOf(sequences, policy)).status().code(),
            absl::StatusCode::kInternal);
}

TEST(Cohort, AsksNothingOfTheBackendForThoseThatKeepEverything) {
  const Sequences sequences = ThreeSequences();  // of 80, 120 and 100 tokens
  PolicyWords words;
  words.budget = TokenBudget{100};
  const ResolvedPolicy policy = PolicyOf(words);
  support::BatchingRef backend;
  size_t judged = 0;
  backend.before = [&](const std::string& op, size_t cohort) {
    if (op == "RowNorms") judged = cohort;
    return absl::OkStatus();
  };
  const std::vector<KeepPlan> plans = Plans(backend, sequences, policy);
  EXPECT_EQ(judged, 1u);
  EXPECT_TRUE(plans[0].scores.empty());
  EXPECT_FALSE(plans[1].scores.empty());
  EXPECT_TRUE(plans[2].scores.empty());
}

TEST(Cohort, BringsScoresToTheHostOnlyWhereTheyAreWanted) {
  const Sequences sequences = ThreeSequences();
  const ResolvedPolicy policy = PolicyOf({});
  std::vector<KeepTask> tasks = TasksOf(sequences, policy);
  tasks[0].want_scores = false;
  support::BatchingRef backend;
  const auto outcomes = PlanKeep(backend, tasks);
  ASSERT_TRUE(outcomes.ok());
  EXPECT_TRUE((*outcomes)[0]->scores.empty());
  EXPECT_FALSE((*outcomes)[1]->scores.empty());
}

TEST(Cohort, DividesTheTimeOfAStageByTokens) {
  const Sequences sequences = ThreeSequences();  // of 80, 120 and 100 tokens
  support::BatchingRef backend;
  backend.lap_micros = 3000;
  const std::vector<KeepPlan> plans = Plans(backend, sequences, PolicyOf({}));
  EXPECT_EQ(plans[0].micros.score, 800);
  EXPECT_EQ(plans[1].micros.select, 1200);
  EXPECT_EQ(plans[2].micros.score, 1000);
}

TEST(Cohort, BuildsOneRotationForSequencesAtTheSamePositions) {
  Sequences sequences = ThreeSequences();
  sequences.push_back(std::make_unique<LiveSequence>(
      F32({.layers = 2, .kv_heads = 2, .tokens = 80, .head_dim = 16})));
  for (auto& sequence : sequences) sequence->input().model = &sequences[0]->model();
  RotationTables tables;
  const auto first = tables.Of(sequences[0]->input());  // of 80 tokens
  EXPECT_NE(tables.Of(sequences[1]->input()), first);
  EXPECT_EQ(tables.Of(sequences[3]->input()), first);
  sequences[3]->input().positions[79] = 90;
  EXPECT_NE(tables.Of(sequences[3]->input()), first);
}

TEST(Cohort, PacksEachSequenceAsIfItWereAlone) {
  const Sequences sequences = ThreeSequences();
  const std::unique_ptr<Backend> ref = RefBackend();
  for (const PositionMode positions : {PositionMode::kKeepLogical, PositionMode::kRenumber}) {
    PolicyWords words;
    words.scorers = {"keydiff:unrotate"};
    words.k_codec = "lm4+rm";
    words.v_codec = "i8t";
    words.positions = positions;
    const ResolvedPolicy policy = PolicyOf(words);
    support::BatchingRef batching;
    const std::vector<KeepPlan> plans = Plans(batching, sequences, policy);
    const std::vector<Float16> frozen(2 * 2 * 16, FromFloat<Float16>(0.25f));
    std::vector<PackTask> tasks;
    for (size_t at = 0; at < sequences.size(); ++at) {
      tasks.push_back({&sequences[at]->input(), &policy, &plans[at]});
    }
    tasks[2].frozen_mean = frozen;
    const auto packed = Pack(batching, tasks);
    ASSERT_TRUE(packed.ok()) << packed.status().ToString();
    for (size_t at = 0; at < sequences.size(); ++at) {
      const PackedKv alone =
          Pack(*ref, sequences[at]->input(), policy, plans[at], tasks[at].frozen_mean).value();
      EXPECT_EQ((*packed)[at].blocks, alone.blocks);
      EXPECT_TRUE(SameBits((*packed)[at].mean_key, alone.mean_key));
      EXPECT_EQ((*packed)[at].k_counts.squared_error, alone.k_counts.squared_error);
      EXPECT_EQ((*packed)[at].v_counts.squared_norm, alone.v_counts.squared_norm);
    }
  }
}

TEST(Cohort, MovesEachSequenceAsIfItWereAlone) {
  const Sequences sequences = ThreeSequences();
  const std::unique_ptr<Backend> ref = RefBackend();
  PolicyWords words;
  words.positions = PositionMode::kRenumber;
  const ResolvedPolicy policy = PolicyOf(words);
  support::BatchingRef batching;
  const std::vector<KeepPlan> plans = Plans(batching, sequences, policy);
  std::vector<MoveTask> tasks;
  std::vector<std::unique_ptr<DenseTarget>> together;
  for (size_t at = 0; at < sequences.size(); ++at) {
    const SequenceInput& input = sequences[at]->input();
    together.push_back(std::make_unique<DenseTarget>(input, plans[at].max_kept));
    tasks.push_back({&input, &policy, &plans[at], together[at]->ToMove()});
  }
  ASSERT_TRUE(Move(batching, tasks).ok());
  EXPECT_EQ(batching.calls["Gather"], 1);
  for (size_t at = 0; at < sequences.size(); ++at) {
    const SequenceInput& input = sequences[at]->input();
    DenseTarget alone(input, plans[at].max_kept);
    ASSERT_TRUE(Move(*ref, input, policy, plans[at], alone.ToMove()).ok());
    EXPECT_TRUE(std::ranges::equal(together[at]->keys().memory(), alone.keys().memory()));
  }
}

TEST(Cohort, ReadsRowsThatWereStagedElsewhereFromThere) {
  LiveSequence sequence(F32({.layers = 2, .kv_heads = 2, .tokens = 60, .head_dim = 16}));
  const ResolvedPolicy policy = PolicyOf({});
  support::BatchingRef backend;
  const KeepPlan plan = PlanKeep(backend, sequence.input(), policy).value();
  SequenceInput staged = sequence.input();
  const StagedRows keys = backend.Stage(staged.keys).value();
  const StagedRows values = backend.Stage(staged.values).value();
  MoveTarget target = {sequence.input().keys, sequence.input().values};
  target.in_place = true;
  staged.keys = keys.rows;
  staged.values = values.rows;
  LiveSequence original(F32({.layers = 2, .kv_heads = 2, .tokens = 60, .head_dim = 16}));
  ASSERT_TRUE(Move(backend, staged, policy, plan, target).ok());
  EXPECT_EQ(RelativeError(plan, original.keys(), sequence.keys()), 0.0);
  EXPECT_EQ(RelativeError(plan, original.values(), sequence.values()), 0.0);
}

}  // namespace
}  // namespace kvern::pipeline
