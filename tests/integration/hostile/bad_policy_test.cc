// Policies with one part wrong at a time; what is not known is answered with what is.
#include <limits>

#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using Request = v1::CompressCacheRequest;
using absl::StatusCode;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class BadPolicy : public HostileTest {
 protected:
  static void ExpectAllRefused(const Request& base, const std::vector<BadRequestCase>& cases) {
    Request plan = base;
    plan.set_validate_only(true);
    ASSERT_TRUE(server_->Compress(plan).ok()) << server_->Compress(plan);
    for (const BadRequestCase& bad : cases) {
      SCOPED_TRACE(bad.what);
      Request request = base;
      bad.spoil(&request);
      ExpectRefused(server_->Compress(request), bad.want);
      // A sequence's own policy is checked alike, and named by its own path.
      Request own = base;
      bad.spoil(&own);
      *own.mutable_sequences(0)->mutable_policy() = own.policy();
      *own.mutable_policy() = base.policy();
      Refusal want = bad.want;
      if (!want.field.empty()) want.field = "sequences[0]." + want.field;
      ExpectRefused(server_->Compress(own), want);
      server_->Process().Log();
    }
  }
};

v1::Policy* P(Request* request) { return request->mutable_policy(); }

// A part that names a stage: `name`, or `name` with one parameter.
void Set(v1::StageSpec* spec, const std::string& name, const std::string& key = "",
         const std::string& value = "") {
  spec->set_name(name);
  if (!key.empty()) (*spec->mutable_params())[key] = value;
}

TEST_F(BadPolicy, NumbersOutOfRangeAreRefusedByField) {
  ExpectAllRefused(
      server_->Paged(),
      {{"tokens negative",
        [](Request* r) { P(r)->mutable_budget()->set_tokens(-1); },
        {"policy.budget.tokens"}},
       {"tokens 2^40",
        [](Request* r) { P(r)->mutable_budget()->set_tokens(int64_t{1} << 40); },
        {"policy.budget.tokens"}},
       {"ratio 0",
        [](Request* r) { P(r)->mutable_budget()->set_keep_ratio(0); },
        {"policy.budget.keep_ratio"}},
       {"ratio above 1",
        [](Request* r) { P(r)->mutable_budget()->set_keep_ratio(1.01); },
        {"policy.budget.keep_ratio"}},
       {"ratio NaN",
        [](Request* r) { P(r)->mutable_budget()->set_keep_ratio(kNan); },
        {"policy.budget.keep_ratio"}},
       {"bytes negative",
        [](Request* r) { P(r)->mutable_budget()->set_bytes(-1); },
        {"policy.budget.bytes"}},
       {"sinks negative", [](Request* r) { P(r)->set_sink_tokens(-1); }, {"policy.sink_tokens"}},
       {"sinks 2^62",
        [](Request* r) { P(r)->set_sink_tokens(int64_t{1} << 62); },
        {"policy.sink_tokens"}},
       {"recent negative",
        [](Request* r) { P(r)->set_recent_tokens(-1); },
        {"policy.recent_tokens"}},
       {"recent 2^62",
        [](Request* r) { P(r)->set_recent_tokens(int64_t{1} << 62); },
        {"policy.recent_tokens"}},
       {"share above 1", [](Request* r) { P(r)->set_recent_share(1.5); }, {"policy.recent_share"}},
       {"share negative",
        [](Request* r) { P(r)->set_recent_share(-0.5); },
        {"policy.recent_share"}},
       {"share NaN", [](Request* r) { P(r)->set_recent_share(kNan); }, {"policy.recent_share"}}});
}

TEST_F(BadPolicy, EnumsAndNamesOutOfRangeAreRefusedByField) {
  ExpectAllRefused(
      server_->Paged(),
      {{"blend", [](Request* r) { P(r)->set_blend(static_cast<v1::Blend>(9)); }, {"policy.blend"}},
       {"positions",
        [](Request* r) { P(r)->set_positions(static_cast<v1::PositionMode>(9)); },
        {"policy.positions"}},
       {"placement",
        [](Request* r) { P(r)->set_placement(static_cast<v1::Placement>(-1)); },
        {"policy.placement"}},
       {"conflict",
        [](Request* r) { P(r)->set_on_conflict(static_cast<v1::OnConflict>(99)); },
        {"policy.on_conflict"}},
       {"preset too long",
        [](Request* r) { P(r)->set_preset(std::string(65, 'p')); },
        {"policy.preset"}},
       {"preset unknown",
        [](Request* r) { P(r)->set_preset("evict51"); },
        {"policy.preset", StatusCode::kInvalidArgument, "",
         "balanced, small, tiny, safe, evict50"}},
       {"profile unknown",
        [](Request* r) { P(r)->set_profile("music"); },
        {"policy.profile", StatusCode::kInvalidArgument, "", "retrieval or text"}},
       {"profile beside scorers",
        [](Request* r) { P(r)->set_profile("text"); },
        {"policy.profile"}},
       {"calibration no digest",
        [](Request* r) { P(r)->add_calibrations("calibrations/xyz"); },
        {"policy.calibrations[0]"}},
       {"calibrations too many",
        [](Request* r) {
          for (int i = 0; i < 17; ++i) {
            P(r)->add_calibrations("calibrations/" + std::string(64, 'a'));
          }
        },
        {"policy.calibrations"}},
       {"calibration unknown",
        [](Request* r) { P(r)->add_calibrations("calibrations/" + std::string(64, 'a')); },
        {"", StatusCode::kNotFound, "CALIBRATION_UNKNOWN"}}});
}

TEST_F(BadPolicy, UnknownStagesAreAnsweredWithThoseKnown) {
  ExpectAllRefused(
      server_->Paged(),
      {{"budgeter",
        [](Request* r) { Set(P(r)->mutable_budgeter(), "fair"); },
        {"policy.budgeter.name", StatusCode::kInvalidArgument, "",
         "uniform, sensitivity, pyramid"}},
       {"scorer",
        [](Request* r) { Set(P(r)->mutable_scorers(0), "oracle"); },
        {"policy.scorers[0].name", StatusCode::kInvalidArgument, "", "keydiff"}},
       {"selector",
        [](Request* r) { Set(P(r)->mutable_selector(), "bottomk"); },
        {"policy.selector.name", StatusCode::kInvalidArgument, "", "topk, diverse, sink_recent"}},
       {"k codec",
        [](Request* r) { P(r)->mutable_codecs()->set_k("zip"); },
        {"policy.codecs.k", StatusCode::kInvalidArgument, "",
         "raw16, i8t, fp8t, kch4, i4t, lm4, sfv3, sfv2"}},
       {"v codec flag",
        [](Request* r) { P(r)->mutable_codecs()->set_v("i8t+X"); },
        {"policy.codecs.v", StatusCode::kInvalidArgument, "", "flags of H, rm"}},
       {"stage without a name",
        [](Request* r) { P(r)->mutable_scorers(0)->clear_name(); },
        {"policy.scorers[0].name"}},
       {"stage of 1000 bytes",
        [](Request* r) { Set(P(r)->mutable_scorers(0), std::string(1000, 's')); },
        {"policy.scorers[0].name"}},
       {"stage of control bytes",
        [](Request* r) { Set(P(r)->mutable_scorers(0), std::string("a\n\x01", 3)); },
        {"policy.scorers[0].name", StatusCode::kInvalidArgument, "", "\\n\\x01"}},
       {"17 scorers",
        [](Request* r) {
          while (P(r)->scorers_size() < 17) Set(P(r)->add_scorers(), "keydiff");
        },
        {"policy.scorers"}},
       {"codec too long",
        [](Request* r) { P(r)->mutable_codecs()->set_k(std::string(65, 'k')); },
        {"policy.codecs.k"}}});
}

TEST_F(BadPolicy, UnknownParametersAreAnsweredWithThoseKnown) {
  const auto scorer = [](const char* name, const char* key, const char* value) {
    return [=](Request* r) { Set(P(r)->mutable_scorers(0), name, key, value); };
  };
  ExpectAllRefused(
      server_->Paged(),
      {{"unknown name",
        scorer("keydiff", "speed", "1"),
        {"policy.scorers[0].params", StatusCode::kInvalidArgument, "", "unrotate"}},
       {"no bool", scorer("keydiff", "unrotate", "yes"), {"policy.scorers[0].params.unrotate"}},
       {"below its range", scorer("snapkv", "window", "0"), {"policy.scorers[0].params.window"}},
       {"above i64",
        scorer("snapkv", "window", "99999999999999999999"),
        {"policy.scorers[0].params.window"}},
       {"no number", scorer("snapkv", "window", "NaN"), {"policy.scorers[0].params.window"}},
       {"value too long",
        [](Request* r) { Set(P(r)->mutable_scorers(0), "snapkv", "window", std::string(65, '1')); },
        {"policy.scorers[0].params"}},
       {"65 parameters",
        [](Request* r) {
          for (int i = 0; i < 65; ++i) {
            Set(P(r)->mutable_scorers(0), "keydiff", "p" + std::to_string(i), "1");
          }
        },
        {"policy.scorers[0].params"}},
       {"selector's lambda",
        [](Request* r) { Set(P(r)->mutable_selector(), "diverse", "lambda", "inf"); },
        {"policy.selector.params.lambda"}},
       {"selector's unknown",
        [](Request* r) { Set(P(r)->mutable_selector(), "topk", "k", "3"); },
        {"policy.selector.params", StatusCode::kInvalidArgument, "", "tie, share, reduce"}},
       {"budgeter's beta",
        [](Request* r) { Set(P(r)->mutable_budgeter(), "pyramid", "beta", "0"); },
        {"policy.budgeter.params.beta", StatusCode::kInvalidArgument, "", "1..1000"}}});
}

TEST_F(BadPolicy, WhatDoesNotFitTogetherIsAFailedPrecondition) {
  constexpr StatusCode kUnmet = StatusCode::kFailedPrecondition;
  ExpectAllRefused(server_->Paged(),
                   {{"packed into the pool",
                     [](Request* r) { P(r)->mutable_codecs()->set_v("lm4"); },
                     {"policy.codecs.v", kUnmet, "CODEC_NEEDS_STORE"}},
                    {"returned from the pool",
                     [](Request* r) { P(r)->set_placement(v1::PLACEMENT_RETURN); },
                     {"policy.placement", kUnmet, "PLACEMENT_UNSUPPORTED"}},
                    {"scorer without its input",
                     [](Request* r) { Set(P(r)->mutable_scorers(0), "snapkv"); },
                     {"policy.scorers[0]", kUnmet, "INPUT_MISSING", "q_window"}},
                    {"budgeter without its input",
                     [](Request* r) { Set(P(r)->mutable_budgeter(), "sensitivity"); },
                     {"policy.budgeter", kUnmet, "INPUT_MISSING", "layer_sensitivity"}},
                    {"4-bit keys without rm",
                     [](Request* r) {
                       P(r)->set_placement(v1::PLACEMENT_TO_STORE);
                       P(r)->mutable_codecs()->set_k("lm4");
                     },
                     {"policy.codecs.k", StatusCode::kInvalidArgument, "", "lm4+rm"}},
                    {"rm on values",
                     [](Request* r) {
                       P(r)->set_placement(v1::PLACEMENT_TO_STORE);
                       P(r)->mutable_codecs()->set_v("i8t+rm");
                     },
                     {"policy.codecs.v"}},
                    {"no budget", [](Request* r) { P(r)->clear_budget(); }, {"policy.budget"}},
                    {"no scorer", [](Request* r) { P(r)->clear_scorers(); }, {"policy.scorers"}}});
}

TEST_F(BadPolicy, BudgetsBelowTheProtectedTokensFailWhereAskedTo) {
  Request request = server_->Paged();
  request.mutable_sequences(0)->add_protected_()->set_end(150);
  P(&request)->set_on_conflict(v1::ON_CONFLICT_FAIL);
  const absl::Status status = server_->Compress(request);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(ReasonOf(status), "BUDGET_BELOW_PROTECTED") << status;
}

}  // namespace
}  // namespace kvern::hostile
