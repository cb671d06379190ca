#include "server/pipeline/resolve.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::pipeline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint16_t kRope = kNeedsRope;
constexpr uint16_t kCalibrated = kNeedsRope | kNeedsCentres | kNeedsSensitivity | kNeedsMoments;
constexpr char kDefaultScorers[] = "max(expected_attention:log=true,rank=8, keydiff:unrotate=true)";

Availability Inline(uint16_t inputs) { return {.source = Source::kInline, .inputs = inputs}; }
Availability Paged(uint16_t inputs) { return {.source = Source::kPaged, .inputs = inputs}; }

ResolvedPolicy Resolved(const Policy& policy, const Availability& available) {
  auto resolved = Resolve(policy, available);
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return *std::move(resolved);
}

// "code/REASON field: message"
std::string Refusal(const Policy& policy, const Availability& available) {
  const absl::Status status = Resolve(policy, available).status();
  return std::string(absl::StatusCodeToString(status.code())) + "/" + ReasonOf(status) + " " +
         FieldOf(status) + ": " + std::string(status.message());
}

TEST(Resolve, TakesBalancedWithoutAnyPolicy) {
  const ResolvedPolicy policy = Resolved({}, Inline(kCalibrated));
  EXPECT_EQ(policy.preset, "balanced");
  EXPECT_EQ(policy.placement, Placement::kReturn);
  EXPECT_EQ(policy.byte_share, 0.25);
  EXPECT_EQ(ToText(policy.budgeter_spec), "sensitivity");
  EXPECT_EQ(ToText(policy.codecs.k), "i8t+rm");
  EXPECT_EQ(ToText(policy.codecs.v), "lm4");
  EXPECT_EQ(policy.ScorerText(), kDefaultScorers);
  EXPECT_EQ(policy.scorers.size(), 2u);
  EXPECT_EQ(policy.sink_tokens, 4);
  EXPECT_EQ(policy.recent_tokens, 32);
  EXPECT_EQ(policy.recent_share, 0.5);
  EXPECT_THAT(policy.fallback, IsEmpty());
  EXPECT_THAT(policy.warnings, IsEmpty());
}

TEST(Resolve, TakesTheUncalibratedRowWithoutSensitivity) {
  const ResolvedPolicy policy = Resolved({}, Inline(kRope));
  EXPECT_EQ(ToText(policy.budgeter_spec), "uniform");
  EXPECT_EQ(ToText(policy.codecs.k), "lm4+rm");
  EXPECT_EQ(policy.ScorerText(), "keydiff:unrotate=true");
  EXPECT_THAT(policy.fallback, HasSubstr("layer_sensitivity"));
  EXPECT_THAT(policy.fallback, HasSubstr("query_moments: keydiff:unrotate=true"));
}

TEST(Resolve, TakesEvict50ForPagedCopiesThatNameNoPolicy) {
  for (const Placement placement : {Placement::kDefault, Placement::kCopyTo, Placement::kCompact}) {
    Policy asked;
    asked.placement = placement;
    const ResolvedPolicy policy = Resolved(asked, Paged(kCalibrated));
    EXPECT_EQ(policy.preset, "evict50");
    EXPECT_EQ(std::get<KeepRatioBudget>(*policy.budget).ratio, 0.5);
    EXPECT_EQ(ToText(policy.budgeter_spec), "uniform");
    EXPECT_FALSE(policy.codecs.Packs());
  }
  Policy store;
  store.placement = Placement::kToStore;
  EXPECT_EQ(Resolved(store, Paged(kRope)).preset, "balanced");
  EXPECT_EQ(Resolved({}, {.source = Source::kStored, .inputs = kRope}).placement,
            Placement::kToStore);
}

TEST(Resolve, KeepsEveryTokenUnderSafe) {
  Policy safe;
  safe.preset = "safe";
  const ResolvedPolicy policy = Resolved(safe, Inline(kRope));
  EXPECT_FALSE(policy.budget || policy.byte_share);
  EXPECT_THAT(policy.scorers, IsEmpty());
  EXPECT_EQ(ToText(policy.codecs.k) + "," + ToText(policy.codecs.v), "i8t+rm,i8t");
}

TEST(Resolve, OverridesOnlyTheGivenPartOfAPreset) {
  Policy asked;
  asked.preset = "balanced";
  asked.budget.emplace(TokenBudget{64});
  asked.sink_tokens = 8;
  const ResolvedPolicy policy = Resolved(asked, Inline(kCalibrated));
  EXPECT_EQ(std::get<TokenBudget>(*policy.budget).tokens, 64);
  EXPECT_FALSE(policy.byte_share);
  EXPECT_EQ(policy.sink_tokens, 8);
  EXPECT_EQ(ToText(policy.budgeter_spec), "sensitivity");
  EXPECT_EQ(policy.ScorerText(), kDefaultScorers);

  Policy codec;
  codec.preset = "evict50";
  codec.v_codec = "i8t";
  EXPECT_EQ(ToText(Resolved(codec, Inline(kRope)).codecs.v), "i8t");
  Policy budgeted_safe;
  budgeted_safe.preset = "safe";
  budgeted_safe.budget.emplace(KeepRatioBudget{0.5});
  EXPECT_EQ(Resolved(budgeted_safe, Inline(kCalibrated)).ScorerText(), kDefaultScorers);
}

TEST(Resolve, FillsCustomPartsWithPlainDefaults) {
  Policy asked;
  asked.budget.emplace(TokenBudget{64});
  asked.scorers = {{"key_norm", {}}};
  const ResolvedPolicy policy = Resolved(asked, Inline(kCalibrated));
  EXPECT_EQ(policy.preset, "custom");
  EXPECT_EQ(ToText(policy.budgeter_spec), "uniform");
  EXPECT_EQ(ToText(policy.selector_spec), "topk");
  EXPECT_FALSE(policy.codecs.Packs());
  EXPECT_EQ(policy.ScorerText(), "key_norm");
  EXPECT_EQ(policy.positions, PositionMode::kKeepLogical);
}

TEST(Resolve, WantsAScorerAndABudgetOfCustomParts) {
  Policy no_scorer;
  no_scorer.budget.emplace(TokenBudget{64});
  EXPECT_THAT(Refusal(no_scorer, Inline(kRope)),
              HasSubstr("INVALID_ARGUMENT/ policy.scorers: scorers got none"));
  Policy no_budget;
  no_budget.scorers = {{"key_norm", {}}};
  EXPECT_THAT(Refusal(no_budget, Inline(kRope)),
              HasSubstr("INVALID_ARGUMENT/ policy.budget: budget got none"));
  Policy only_recent;
  only_recent.recent_tokens = 9;
  EXPECT_THAT(Refusal(only_recent, Inline(kRope)), HasSubstr("policy.scorers"));
}

TEST(Resolve, KeepsEveryTokenWhenOnlyACodecIsGiven) {
  Policy asked;
  asked.k_codec = "lm4+rm";
  const ResolvedPolicy policy = Resolved(asked, Inline(kRope));
  EXPECT_EQ(policy.preset, "custom");
  EXPECT_FALSE(policy.budget || policy.byte_share);
  EXPECT_THAT(policy.scorers, IsEmpty());
  EXPECT_EQ(ToText(policy.codecs.v), "raw16");
}

TEST(Resolve, NeedsNoScorerForASelectorThatReadsNone) {
  Policy asked;
  asked.budget.emplace(TokenBudget{64});
  asked.selector = StageSpec{"sink_recent", {}};
  EXPECT_THAT(Resolved(asked, Inline(kRope)).scorers, IsEmpty());
}

TEST(Resolve, UsesObservedAttentionWhereItIsSent) {
  const std::string mass = "attention_mass:log=true,per_visible=true,value_norm=true";
  EXPECT_EQ(Resolved({}, Inline(kCalibrated | kNeedsAttentionMass)).ScorerText(),
            "max(" + mass + ", keydiff:unrotate=true)");
  EXPECT_EQ(Resolved({}, Paged(kNeedsAttentionMass)).ScorerText(), "max(" + mass + ", keydiff)");
}

TEST(Resolve, NamesAFallbackOfItsScorers) {
  const ResolvedPolicy policy = Resolved({}, Paged(0));
  EXPECT_EQ(policy.ScorerText(), "keydiff");
  EXPECT_THAT(policy.fallback, HasSubstr("query_moments, rope"));
}

TEST(Resolve, ReplacesThePresetsScorerByAProfile) {
  Policy retrieval;
  retrieval.profile = "retrieval";
  const ResolvedPolicy policy = Resolved(retrieval, Inline(kCalibrated));
  EXPECT_EQ(policy.preset, "balanced");
  EXPECT_EQ(policy.ScorerText(), "keydiff:unrotate=true");
  Policy text;
  text.profile = "text";
  EXPECT_EQ(Resolved(text, Inline(kCalibrated)).ScorerText(), "expected_attention:log=true,rank=8");
  EXPECT_THAT(Refusal(text, Inline(kRope)),
              HasSubstr("FAILED_PRECONDITION/INPUT_MISSING policy.profile: "
                        "expected_attention:log=true,rank=8 needs query_moments"));
  text.profile = "code";
  EXPECT_THAT(Refusal(text, Inline(kRope)), HasSubstr("want retrieval or text"));
  text.profile = "text";
  text.scorers = {{"key_norm", {}}};
  EXPECT_THAT(Refusal(text, Inline(kRope)), HasSubstr("INVALID_ARGUMENT/ policy.profile"));
}

TEST(Resolve, NamesMissingInputs) {
  Policy asked;
  asked.budget.emplace(TokenBudget{64});
  asked.scorers = {{"key_norm", {}}, {"snapkv", {}}};
  EXPECT_THAT(Refusal(asked, Inline(kRope)),
              HasSubstr("FAILED_PRECONDITION/INPUT_MISSING policy.scorers[1]: "
                        "snapkv needs q_window"));
  asked.scorers = {{"keydiff", {{"unrotate", "true"}}}};
  EXPECT_THAT(Refusal(asked, Inline(0)), HasSubstr("FAILED_PRECONDITION/ROPE_UNKNOWN"));
  asked.scorers = {{"key_norm", {}}};
  asked.budgeter = StageSpec{"sensitivity", {}};
  EXPECT_THAT(Refusal(asked, Inline(kRope)),
              HasSubstr("INPUT_MISSING policy.budgeter: sensitivity needs layer_sensitivity"));
}

TEST(Resolve, RefusesRmWithoutRope) {
  EXPECT_THAT(Refusal({}, Inline(0)),
              HasSubstr("FAILED_PRECONDITION/ROPE_UNKNOWN policy.codecs.k"));
  Policy safe;
  safe.preset = "safe";
  EXPECT_THAT(Refusal(safe, Inline(0)), HasSubstr("ROPE_UNKNOWN"));
}

TEST(Resolve, RefusesCodesWhereNothingIsStored) {
  Policy asked;
  asked.preset = "balanced";
  for (const Placement placement :
       {Placement::kDefault, Placement::kCompact, Placement::kIndicesOnly}) {
    asked.placement = placement;
    EXPECT_THAT(Refusal(asked, Paged(kCalibrated)),
                HasSubstr("FAILED_PRECONDITION/CODEC_NEEDS_STORE policy.codecs.k"));
  }
  asked.preset = "evict50";
  asked.v_codec = "i8t";
  EXPECT_THAT(Refusal(asked, Paged(kCalibrated)), HasSubstr("CODEC_NEEDS_STORE policy.codecs.v"));
}

TEST(Resolve, RefusesPlacementsThatTheSourceCannotTake) {
  const std::pair<Source, Placement> bad[] = {
      {Source::kInline, Placement::kCopyTo},  {Source::kInline, Placement::kCompact},
      {Source::kInline, Placement::kToStore}, {Source::kPaged, Placement::kReturn},
      {Source::kStored, Placement::kReturn},  {Source::kStored, Placement::kCopyTo},
      {Source::kStored, Placement::kCompact}};
  for (const auto& [source, placement] : bad) {
    Policy asked;
    asked.preset = "evict50";
    asked.placement = placement;
    EXPECT_THAT(Refusal(asked, {.source = source, .inputs = kRope}),
                HasSubstr("FAILED_PRECONDITION/PLACEMENT_UNSUPPORTED policy.placement"));
  }
}

TEST(Resolve, WritesNothingIntoAReadOnlyPool) {
  const Availability read_only = {
      .source = Source::kPaged, .inputs = kRope, .read_only_pool = true};
  EXPECT_THAT(Refusal({}, read_only), HasSubstr("POOL_READ_ONLY"));
  Policy asked;
  asked.preset = "evict50";
  asked.placement = Placement::kIndicesOnly;
  EXPECT_TRUE(Resolve(asked, read_only).ok());
  asked.placement = Placement::kToStore;
  EXPECT_TRUE(Resolve(asked, read_only).ok());
}

TEST(Resolve, RenumbersOnlyEqualCounts) {
  Policy asked;
  asked.positions = PositionMode::kRenumber;
  EXPECT_TRUE(Resolve(asked, Inline(kRope)).ok());
  EXPECT_THAT(Refusal(asked, Inline(kCalibrated)),
              HasSubstr("FAILED_PRECONDITION/SHAPE_CLASS policy.budgeter"));
  asked.preset = "evict50";
  EXPECT_TRUE(Resolve(asked, Paged(kCalibrated)).ok());
  EXPECT_THAT(Refusal(asked, Paged(0)), HasSubstr("ROPE_UNKNOWN policy.positions"));
}

TEST(Resolve, WarnsOfEightBitKeysWithoutRm) {
  Policy asked;
  asked.k_codec = "H+i8t";
  EXPECT_THAT(Resolved(asked, Inline(0)).warnings, ElementsAre(HasSubstr("without rm")));
  asked.k_codec = "fp8t";
  EXPECT_THAT(Resolved(asked, Inline(0)).warnings, ElementsAre(HasSubstr("fp8t+rm")));
  asked.k_codec = "kch4";  // has a zero per channel
  EXPECT_THAT(Resolved(asked, Inline(0)).warnings, IsEmpty());
  asked.k_codec = "lm4";
  EXPECT_THAT(Refusal(asked, Inline(kRope)), HasSubstr("INVALID_ARGUMENT/ policy.codecs.k"));
}

TEST(Resolve, ListsTheKnownWhenANameIsUnknown) {
  Policy preset;
  preset.preset = "minute";
  EXPECT_THAT(Refusal(preset, Inline(kRope)),
              HasSubstr("want one of balanced, small, tiny, safe, evict50"));
  Policy stage;
  stage.budget.emplace(TokenBudget{1});
  stage.scorers = {{"h2o", {}}};
  EXPECT_THAT(Refusal(stage, Inline(kRope)), HasSubstr("INVALID_ARGUMENT/ policy.scorers[0]"));
  EXPECT_THAT(Refusal(stage, Inline(kRope)), HasSubstr("keydiff"));
  stage.scorers = {{"snapkv", {{"window", "0"}}}};
  EXPECT_THAT(Refusal(stage, Inline(kRope | kNeedsQueryWindow)),
              HasSubstr("policy.scorers[0].params.window"));
  stage.scorers = {{"key_norm", {}}};
  stage.budgeter = StageSpec{"flat", {}};
  EXPECT_THAT(Refusal(stage, Inline(kRope)), HasSubstr("policy.budgeter.name"));
  stage.budgeter.reset();
  stage.selector = StageSpec{"best", {}};
  EXPECT_THAT(Refusal(stage, Inline(kRope)), HasSubstr("policy.selector"));
}

TEST(Resolve, RefusesNumbersOutOfRange) {
  Policy asked;
  asked.preset = "evict50";
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const double ratio : {0.0, -0.5, 1.0001, std::nan(""), kInfinity, -kInfinity}) {
    asked.budget.emplace(KeepRatioBudget{ratio});
    EXPECT_THAT(Refusal(asked, Paged(kRope)), HasSubstr("policy.budget.keep_ratio")) << ratio;
  }
  asked.budget.emplace(TokenBudget{-1});
  EXPECT_THAT(Refusal(asked, Paged(kRope)), HasSubstr("policy.budget.tokens"));
  asked.budget.emplace(ByteBudget{std::numeric_limits<int64_t>::min()});
  EXPECT_THAT(Refusal(asked, Paged(kRope)), HasSubstr("policy.budget.bytes"));
  asked.budget.reset();
  for (const double share : {-0.1, 1.1, std::nan("")}) {
    asked.recent_share = share;
    EXPECT_THAT(Refusal(asked, Paged(kRope)), HasSubstr("policy.recent_share")) << share;
  }
  asked.recent_share.reset();
  asked.sink_tokens = -1;
  EXPECT_THAT(Refusal(asked, Paged(kRope)), HasSubstr("policy.sink_tokens"));
  asked.sink_tokens.reset();
  asked.recent_tokens = -7;
  EXPECT_THAT(Refusal(asked, Paged(kRope)), HasSubstr("policy.recent_tokens"));
}

TEST(Resolve, AnswersEveryGarbageWithAShortMessage) {
  std::mt19937 random(23);
  const std::string words[] = {"",
                               "balanced",
                               "evict50",
                               "topk",
                               "uniform",
                               "key_norm",
                               "lm4+rm",
                               "i8t",
                               "text",
                               "sensitivity",
                               "snapkv",
                               std::string(10000, 'x'),
                               std::string(300, '\xFE')};
  const double numbers[] = {0, 0.5, 1, -1, 1e300, std::nan("")};
  const auto word = [&] { return words[random() % std::size(words)]; };
  const auto stage = [&] {
    StageSpec spec{word(), {}};
    if (random() % 3 == 0) spec.params[word()] = word();
    return spec;
  };
  for (int round = 0; round < 5000; ++round) {
    Policy policy;
    if (random() % 2) policy.preset = word();
    if (random() % 3 == 0) policy.profile = word();
    if (random() % 2) policy.budget.emplace(KeepRatioBudget{numbers[random() % 6]});
    if (random() % 4 == 0) policy.budget.emplace(ByteBudget{std::numeric_limits<int64_t>::max()});
    if (random() % 2) policy.budgeter = stage();
    if (random() % 2) policy.selector = stage();
    for (size_t scorer = random() % 3; scorer > 0; --scorer) policy.scorers.push_back(stage());
    if (random() % 3 == 0) policy.k_codec = word();
    if (random() % 3 == 0) policy.v_codec = word();
    if (random() % 3 == 0) policy.recent_share = numbers[random() % 6];
    policy.placement = static_cast<Placement>(random() % 6);
    policy.positions = static_cast<PositionMode>(random() % 2);
    const auto resolved = Resolve(policy, {.source = static_cast<Source>(random() % 3),
                                           .inputs = static_cast<uint16_t>(random() % 256)});
    if (resolved.ok()) continue;
    ASSERT_FALSE(FieldOf(resolved.status()).empty()) << resolved.status();
    ASSERT_LT(resolved.status().message().size(), 700u) << resolved.status();
  }
}

}  // namespace
}  // namespace kvern::pipeline
