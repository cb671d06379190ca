// Policies at the edge: unset stays unset, and no value out of range gets in.
#include "server/rpc/policy_from_proto.h"

#include <cmath>
#include <limits>
#include <string>
#include <variant>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

absl::StatusOr<pipeline::Policy> Parse(const v1::Policy& policy) {
  return FromProto(policy, Limits{}, FieldPath("policy"));
}

TEST(PolicyFromProto, LeavesWhatIsUnsetToThePreset) {
  const auto policy = Parse(v1::Policy());
  ASSERT_TRUE(policy.ok());
  EXPECT_FALSE(policy->budget.has_value());
  EXPECT_FALSE(policy->budgeter.has_value());
  EXPECT_FALSE(policy->blend.has_value());
  EXPECT_FALSE(policy->selector.has_value());
  EXPECT_FALSE(policy->k_codec.has_value());
  EXPECT_FALSE(policy->sink_tokens.has_value());
  EXPECT_FALSE(policy->recent_share.has_value());
  EXPECT_EQ(policy->placement, pipeline::Placement::kDefault);
  EXPECT_EQ(policy->on_conflict, pipeline::OnConflict::kGrowBudget);
}

TEST(PolicyFromProto, CarriesEveryPart) {
  v1::Policy policy;
  policy.set_profile("text");
  policy.mutable_budget()->set_keep_ratio(0.25);
  policy.mutable_budgeter()->set_name("pyramid");
  (*policy.mutable_budgeter()->mutable_params())["beta"] = "20";
  policy.add_scorers()->set_name("keydiff");
  policy.set_blend(v1::BLEND_SUM);
  policy.mutable_selector()->set_name("topk");
  policy.mutable_codecs()->set_k("lm4+rm");
  policy.set_sink_tokens(0);
  policy.set_recent_tokens(7);
  policy.set_recent_share(0.0);
  policy.set_positions(v1::POSITION_MODE_RENUMBER);
  policy.set_placement(v1::PLACEMENT_COMPACT);
  policy.set_on_conflict(v1::ON_CONFLICT_TRIM_OLDEST);
  policy.add_calibrations("calibrations/" + std::string(64, 'a'));
  const auto out = Parse(policy);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->profile, "text");
  EXPECT_EQ(std::get<pipeline::KeepRatioBudget>(*out->budget).ratio, 0.25);
  EXPECT_EQ(out->budgeter->params.at("beta"), "20");
  EXPECT_EQ(out->scorers.at(0).name, "keydiff");
  EXPECT_EQ(out->blend, BlendKind::kSum);
  EXPECT_EQ(out->k_codec, "lm4+rm");
  EXPECT_FALSE(out->v_codec.has_value());
  EXPECT_EQ(out->sink_tokens, 0);
  EXPECT_EQ(out->recent_tokens, 7);
  EXPECT_EQ(out->recent_share, 0.0);
  EXPECT_EQ(out->positions, pipeline::PositionMode::kRenumber);
  EXPECT_EQ(out->placement, pipeline::Placement::kCompact);
  EXPECT_EQ(out->on_conflict, pipeline::OnConflict::kTrimOldest);
  EXPECT_EQ(out->calibrations.at(0), std::string(64, 'a'));
}

TEST(PolicyFromProto, NamesTheBadField) {
  using Policy = v1::Policy;
  const Spoiled<Policy> cases[] = {
      {"policy.profile", "want retrieval or text", [](Policy* p) { p->set_profile("fast"); }},
      {"policy.preset", "got 65 bytes", [](Policy* p) { p->set_preset(std::string(65, 'p')); }},
      {"policy.budget.tokens", "got -1", [](Policy* p) { p->mutable_budget()->set_tokens(-1); }},
      {"policy.budget.keep_ratio", "want (0, 1]",
       [](Policy* p) { p->mutable_budget()->set_keep_ratio(0); }},
      {"policy.budget.keep_ratio", "got nan",
       [](Policy* p) { p->mutable_budget()->set_keep_ratio(std::nan("")); }},
      {"policy.budget.keep_ratio", "got 1.5",
       [](Policy* p) { p->mutable_budget()->set_keep_ratio(1.5); }},
      {"policy.budget.bytes", "got -5", [](Policy* p) { p->mutable_budget()->set_bytes(-5); }},
      {"policy.budgeter.name", "want a stage's name", [](Policy* p) { p->mutable_budgeter(); }},
      {"policy.selector.params", "got 65 bytes",
       [](Policy* p) {
         p->mutable_selector()->set_name("topk");
         (*p->mutable_selector()->mutable_params())["a"] = std::string(65, 'x');
       }},
      {"policy.scorers", "got 17 scorers, want at most 16",
       [](Policy* p) {
         for (int i = 0; i < 17; ++i) p->add_scorers()->set_name("keydiff");
       }},
      {"policy.codecs.v", "got 65 bytes",
       [](Policy* p) { p->mutable_codecs()->set_v(std::string(65, 'v')); }},
      {"policy.sink_tokens", "got -4", [](Policy* p) { p->set_sink_tokens(-4); }},
      {"policy.recent_tokens", "want 0..4194304",
       [](Policy* p) { p->set_recent_tokens(std::numeric_limits<int64_t>::max()); }},
      {"policy.recent_share", "got 1.1, want [0, 1]", [](Policy* p) { p->set_recent_share(1.1); }},
      {"policy.recent_share", "got nan", [](Policy* p) { p->set_recent_share(std::nan("")); }},
      {"policy.blend", "got 9", [](Policy* p) { p->set_blend(static_cast<v1::Blend>(9)); }},
      {"policy.positions", "got 9",
       [](Policy* p) { p->set_positions(static_cast<v1::PositionMode>(9)); }},
      {"policy.placement", "got -1",
       [](Policy* p) { p->set_placement(static_cast<v1::Placement>(-1)); }},
      {"policy.on_conflict", "got 9",
       [](Policy* p) { p->set_on_conflict(static_cast<v1::OnConflict>(9)); }},
      {"policy.calibrations[0]", "64 lower-case hex digits",
       [](Policy* p) { p->add_calibrations("calibrations/x"); }},
  };
  for (const Spoiled<Policy>& one : cases) {
    SCOPED_TRACE(one.field);
    Policy policy;
    one.spoil(&policy);
    ExpectBadField(Parse(policy).status(), one.field, one.message);
  }
}

TEST(ShapeClassFromProto, TakesUnspecifiedAsS2) {
  const FieldPath path("max_shape_class");
  EXPECT_EQ(*FromProto(v1::SHAPE_CLASS_UNSPECIFIED, path), pipeline::ShapeClass::kS2);
  EXPECT_EQ(*FromProto(v1::SHAPE_CLASS_S4, path), pipeline::ShapeClass::kS4);
  ExpectBadField(FromProto(static_cast<v1::ShapeClass>(6), path).status(), "max_shape_class",
                 "got 6");
}

}  // namespace
}  // namespace kvern::rpc
