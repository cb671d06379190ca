// Messages of ObserveQueries at the edge, and the log that keeps a resumed stream from counting
// twice.
#include "server/rpc/observe_from_proto.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "absl/time/clock.h"
#include "server/rpc/observe_log.h"
#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

using Request = v1::ObserveQueriesRequest;

pipeline::ModelSpec Model() {
  pipeline::ModelSpec model;
  model.num_layers = 3;
  model.q_heads = 2;
  model.kv_heads = 1;
  model.head_dim = 8;
  model.rope.inv_freq = {1.0f, 0.1f, 0.01f, 0.001f};
  return model;
}

void SetQueries(const std::vector<int64_t>& shape, const std::vector<float>& values,
                Request* request) {
  request->mutable_queries()->set_dtype(v1::DTYPE_F32);
  request->mutable_queries()->mutable_shape()->Assign(shape.begin(), shape.end());
  request->mutable_queries()->set_data(values.data(), values.size() * sizeof(float));
}

// Two layers of two tokens, after RoPE.
Request GoodRequest() {
  Request request;
  request.set_model("models/m");
  request.add_layer_indices(0);
  request.add_layer_indices(2);
  request.set_form(v1::QUERY_FORM_AFTER_ROPE);
  request.add_positions(9);
  request.add_positions(0);  // any order
  SetQueries({2, 2, 2, 8}, std::vector<float>(64, 1.0f), &request);
  return request;
}

TEST(ObserveFromProto, TurnsBackWhatCarriesTheRotation) {
  const auto batch = FromProto(GoodRequest(), Model());
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->layers, (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(batch->tokens, 2);
  // Token 1 lies at position 0; token 0 is turned by -9 radians in its first band.
  EXPECT_EQ(batch->queries[8], 1.0f);
  EXPECT_NEAR(batch->queries[0], std::cos(9.0) + std::sin(9.0), 1e-6);
  EXPECT_NEAR(batch->queries[4], std::cos(9.0) - std::sin(9.0), 1e-6);
}

TEST(ObserveFromProto, TakesQueriesBeforeRopeAsTheyAre) {
  Request request = GoodRequest();
  request.set_form(v1::QUERY_FORM_BEFORE_ROPE);
  request.clear_positions();
  request.clear_layer_indices();
  SetQueries({3, 2, 1, 8}, std::vector<float>(48, 2.5f), &request);
  pipeline::ModelSpec model = Model();
  model.rope.inv_freq.clear();
  const auto batch = FromProto(request, model);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->layers, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(batch->queries, std::vector<float>(48, 2.5f));
}

TEST(ObserveFromProto, WantsARopeToTurnBackBy) {
  pipeline::ModelSpec model = Model();
  model.rope.inv_freq.clear();
  const absl::Status status = FromProto(GoodRequest(), model).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "ROPE_UNKNOWN");
}

TEST(ObserveFromProto, NamesTheFieldThatIsWrong) {
  using R = Request*;
  const auto with = [](float value) {
    std::vector<float> values(64, 1.0f);
    values[63] = value;
    return values;
  };
  const Spoiled<Request> cases[] = {
      {"form", "got 0", [](R r) { r->clear_form(); }},
      {"form", "got 7", [](R r) { r->set_form(static_cast<v1::QueryForm>(7)); }},
      {"layer_indices[1]", "got 3", [](R r) { r->set_layer_indices(1, 3); }},
      {"layer_indices[1]", "ascending", [](R r) { r->set_layer_indices(1, 0); }},
      {"queries.dtype", "want", [](R r) { r->mutable_queries()->clear_dtype(); }},
      {"queries.shape", "got 3 axes",
       [](R r) { r->mutable_queries()->mutable_shape()->RemoveLast(); }},
      {"queries.shape[0]", "want 2",
       [](R r) {
         SetQueries({1, 2, 4, 8}, std::vector<float>(64), r);
       }},
      {"queries.shape[1]", "want 2",
       [](R r) {
         SetQueries({2, 1, 4, 8}, std::vector<float>(64), r);
       }},
      {"queries.shape[2]", "got 0",
       [](R r) {
         SetQueries({2, 2, 0, 8}, {}, r);
       }},
      {"queries.shape[3]", "want 8",
       [](R r) {
         SetQueries({2, 2, 4, 4}, std::vector<float>(64), r);
       }},
      {"queries.data", "want 256 for",
       [](R r) { r->mutable_queries()->mutable_data()->pop_back(); }},
      {"queries.data", "at element 63",
       [&](R r) {
         SetQueries({2, 2, 2, 8}, with(std::nanf("")), r);
       }},
      {"queries.data", "at element 63",
       [&](R r) {
         SetQueries({2, 2, 2, 8}, with(-std::numeric_limits<float>::infinity()), r);
       }},
      {"queries.data", "2^30",
       [&](R r) {
         SetQueries({2, 2, 2, 8}, with(1.1e9f), r);
       }},
      {"queries.data", "4194304",
       [](R r) { r->mutable_queries()->set_data(std::string((4 << 20) + 1, '\0')); }},
      {"positions", "want 2", [](R r) { r->add_positions(1); }},
      {"positions[1]", "got -1", [](R r) { r->set_positions(1, -1); }},
      {"positions", "before RoPE", [](R r) { r->set_form(v1::QUERY_FORM_BEFORE_ROPE); }},
  };
  for (const auto& spoiled : cases) {
    SCOPED_TRACE(spoiled.message);
    Request request = GoodRequest();
    spoiled.spoil(&request);
    ExpectBadField(FromProto(request, Model()).status(), spoiled.field, spoiled.message);
  }
}

// The rotation's scale divides; what leaves the range there would spoil the sums for ever.
TEST(ObserveFromProto, RefusesWhatTurningBackMakesTooLarge) {
  pipeline::ModelSpec model = Model();
  model.rope.attention_scaling = 1e-30f;
  ExpectBadField(FromProto(GoodRequest(), model).status(), "queries.data", "2^30");
  model.rope.attention_scaling = 1e-8f;
  EXPECT_TRUE(FromProto(GoodRequest(), model).ok());
}

TEST(ObserveLog, GoesOnUnderOneIdUntilItsTimeIsUp) {
  Limits limits;
  limits.replay_seconds = 60;
  ObserveLog log(limits);
  const absl::Time start = absl::Now();
  const ObserveLog::Id id = {"unix", "a", 1};
  const auto progress = log.Open(id, start);
  EXPECT_EQ(log.Open(id, start + absl::Seconds(50)), progress);
  EXPECT_EQ(log.Open(id, start + absl::Seconds(100)), progress);  // since it was last opened
  EXPECT_NE(log.Open({"unix", "a", 2}, start), progress);         // another life of the model
  EXPECT_NE(log.Open({"10.0.0.1", "a", 1}, start), progress);
  EXPECT_NE(log.Open(id, start + absl::Seconds(161)), progress);
}

TEST(ObserveLog, ForgetsTheOldestIdBeyondItsNumber) {
  Limits limits;
  limits.replay_answers = 2;
  ObserveLog log(limits);
  const absl::Time now = absl::Now();
  const auto first = log.Open({"unix", "a", 1}, now);
  const auto second = log.Open({"unix", "b", 1}, now);
  EXPECT_EQ(log.Open({"unix", "a", 1}, now), first);
  log.Open({"unix", "c", 1}, now);
  EXPECT_EQ(log.Open({"unix", "a", 1}, now), first);
  EXPECT_NE(log.Open({"unix", "b", 1}, now), second);
}

}  // namespace
}  // namespace kvern::rpc
