// Models at the edge: geometry inside the limits, frequencies finite.
#include "server/rpc/model_from_proto.h"

#include <cmath>
#include <limits>
#include <string>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

using Request = v1::RegisterModelRequest;

Request GoodRequest() {
  Request request;
  request.mutable_model()->set_name("models/m");
  v1::ModelSpec* spec = request.mutable_model()->mutable_spec();
  spec->set_num_layers(28);
  spec->set_q_heads(16);
  spec->set_kv_heads(8);
  spec->set_head_dim(128);
  spec->mutable_rope()->set_theta(10000);
  return request;
}

TEST(ModelFromProto, MakesUnscaledFrequenciesFromTheta) {
  const auto model = FromProto(GoodRequest(), Limits{});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->id, "m");
  const pipeline::RopeSpec& rope = model->spec.rope;
  ASSERT_EQ(rope.Bands(), 64);
  EXPECT_EQ(rope.inv_freq[0], 1.0f);
  EXPECT_EQ(rope.inv_freq[32], static_cast<float>(std::pow(10000.0, -0.5)));
  EXPECT_EQ(rope.attention_scaling, 1.0);
  EXPECT_EQ(rope.layout, RopeLayout::kHalf);
}

TEST(ModelFromProto, TakesLiveFrequenciesAsTheyAre) {
  Request request = GoodRequest();
  v1::Rope* rope = request.mutable_model()->mutable_spec()->mutable_rope();
  rope->add_inv_freq(0.5f);
  rope->add_inv_freq(0.25f);
  rope->set_attention_scaling(1.25);
  rope->set_layout(v1::ROPE_LAYOUT_INTERLEAVED);
  const auto model = FromProto(request, Limits{});
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->spec.rope.inv_freq, (std::vector<float>{0.5f, 0.25f}));
  EXPECT_EQ(model->spec.rope.attention_scaling, 1.25);
  EXPECT_EQ(model->spec.rope.layout, RopeLayout::kInterleaved);
}

TEST(ModelFromProto, KnowsNoRopeWithoutThetaAndFrequencies) {
  Request request = GoodRequest();
  request.mutable_model()->mutable_spec()->mutable_rope()->set_theta(0);
  EXPECT_EQ(FromProto(request, Limits{})->spec.rope.Bands(), 0);
  request.mutable_model()->mutable_spec()->clear_rope();
  EXPECT_EQ(FromProto(request, Limits{})->spec.rope.Bands(), 0);
}

void ExpectRefused(const Spoiled<v1::ModelSpec>& one) {
  SCOPED_TRACE(one.field);
  Request request = GoodRequest();
  one.spoil(request.mutable_model()->mutable_spec());
  ExpectBadField(FromProto(request, Limits{}).status(), one.field, one.message);
}

TEST(ModelFromProto, NamesTheBadGeometry) {
  using Spec = v1::ModelSpec;
  const Spoiled<Spec> cases[] = {
      {"model.spec.num_layers", "got 0, want 1..512", [](Spec* s) { s->set_num_layers(0); }},
      {"model.spec.num_layers", "got 513", [](Spec* s) { s->set_num_layers(513); }},
      {"model.spec.kv_heads", "want 1..1024", [](Spec* s) { s->set_kv_heads(-1); }},
      {"model.spec.q_heads", "got 4, want 8..", [](Spec* s) { s->set_q_heads(4); }},
      {"model.spec.q_heads", "got 12, want a multiple of kv_heads 8",
       [](Spec* s) { s->set_q_heads(12); }},
      {"model.spec.head_dim", "got 4, want 8..1024", [](Spec* s) { s->set_head_dim(4); }},
      {"model.spec.head_dim", "got 100, want a multiple of 8",
       [](Spec* s) { s->set_head_dim(100); }},
      {"model.spec.head_dim", "got 1032", [](Spec* s) { s->set_head_dim(1032); }},
      {"model.spec.display_name", "got 257 bytes",
       [](Spec* s) { s->set_display_name(std::string(257, 'd')); }},
  };
  for (const auto& one : cases) ExpectRefused(one);
}

TEST(ModelFromProto, NamesTheBadRope) {
  using Spec = v1::ModelSpec;
  const Spoiled<Spec> cases[] = {
      {"model.spec.rope.layout", "got 3",
       [](Spec* s) { s->mutable_rope()->set_layout(static_cast<v1::RopeLayout>(3)); }},
      {"model.spec.rope.rotary_dim", "got 130, want 2..128",
       [](Spec* s) { s->mutable_rope()->set_rotary_dim(130); }},
      {"model.spec.rope.rotary_dim", "got 63, want an even number",
       [](Spec* s) { s->mutable_rope()->set_rotary_dim(63); }},
      {"model.spec.rope.inv_freq", "got 1 frequencies, want rotary_dim / 2, 2",
       [](Spec* s) {
         s->mutable_rope()->set_rotary_dim(4);
         s->mutable_rope()->add_inv_freq(1);
       }},
      {"model.spec.rope.inv_freq[1]", "got 0, want a finite frequency above 0",
       [](Spec* s) {
         s->mutable_rope()->add_inv_freq(1);
         s->mutable_rope()->add_inv_freq(0);
       }},
      {"model.spec.rope.inv_freq[0]", "got inf",
       [](Spec* s) { s->mutable_rope()->add_inv_freq(std::numeric_limits<float>::infinity()); }},
      {"model.spec.rope.theta", "got -1", [](Spec* s) { s->mutable_rope()->set_theta(-1); }},
      {"model.spec.rope.theta", "got nan",
       [](Spec* s) { s->mutable_rope()->set_theta(std::nan("")); }},
      {"model.spec.rope.theta", "want one whose frequencies fit f32",
       [](Spec* s) { s->mutable_rope()->set_theta(1e-300); }},
      {"model.spec.rope.attention_scaling", "got nan",
       [](Spec* s) { s->mutable_rope()->set_attention_scaling(std::nan("")); }},
  };
  for (const auto& one : cases) ExpectRefused(one);
}

TEST(ModelFromProto, NamesTheBadName) {
  Request request = GoodRequest();
  request.mutable_model()->set_name("m");
  ExpectBadField(FromProto(request, Limits{}).status(), "model.name", "want models/");
  request = GoodRequest();
  request.mutable_model()->add_calibrations("calibrations/1");
  ExpectBadField(FromProto(request, Limits{}).status(), "model.calibrations[0]", "hex digits");
  request = GoodRequest();
  request.mutable_model()->clear_name();
  EXPECT_EQ(FromProto(request, Limits{})->id, "");
}

}  // namespace
}  // namespace kvern::rpc
