// CompressCache at the edge: good requests become jobs, each bad field is named.
#include "server/rpc/compress_from_proto.h"

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

using Request = v1::CompressCacheRequest;

// 2 layers, 2 of 4 heads, 8 dims.
pipeline::ModelSpec Model() {
  pipeline::ModelSpec model;
  model.num_layers = 2;
  model.q_heads = 4;
  model.kv_heads = 2;
  model.head_dim = 8;
  return model;
}

void SetTensor(std::vector<int64_t> shape, v1::DType dtype, v1::Tensor* tensor) {
  int64_t bytes = dtype == v1::DTYPE_F32 ? 4 : 2;
  tensor->set_dtype(dtype);
  tensor->clear_shape();
  for (const int64_t extent : shape) {
    tensor->add_shape(extent);
    bytes *= extent;
  }
  tensor->set_data(std::string(bytes, '\x3c'));
}

// Sequence 0 is inline with 3 tokens, 1 paged with 10, 2 stored.
std::shared_ptr<Request> GoodRequest() {
  auto request = std::make_shared<Request>();
  request->set_request_id("r");
  request->set_model("models/m");
  v1::SequenceRequest* bytes = request->add_sequences();
  bytes->set_sequence_id("inline");
  SetTensor({2, 2, 3, 8}, v1::DTYPE_BF16, bytes->mutable_inline_()->mutable_k());
  SetTensor({2, 2, 3, 8}, v1::DTYPE_BF16, bytes->mutable_inline_()->mutable_v());
  v1::SequenceRequest* paged = request->add_sequences();
  paged->set_sequence_id("paged");
  paged->mutable_paged()->set_pool("pools/p");
  paged->mutable_paged()->add_block_ids(7);
  paged->mutable_paged()->set_num_tokens(10);
  v1::SequenceRequest* stored = request->add_sequences();
  stored->set_sequence_id("stored");
  stored->mutable_stored()->set_sequence("sequences/s");
  return request;
}

absl::StatusOr<engine::CompressJob> Parse(const std::shared_ptr<Request>& request,
                                          const Limits& limits = Limits{}) {
  const pipeline::ModelSpec model = Model();
  return FromProto(request, Edge{.limits = limits, .model = &model});
}

TEST(CompressFromProto, MakesAJobOfAGoodRequest) {
  const auto request = GoodRequest();
  request->mutable_policy()->set_preset("balanced");
  request->mutable_response_mask()->add_paths("kept");
  request->set_validate_only(true);
  const auto job = Parse(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->request_id, "r");
  EXPECT_EQ(job->model, "m");
  EXPECT_EQ(job->policy.preset, "balanced");
  EXPECT_TRUE(job->validate_only);
  EXPECT_TRUE(job->fields.kept);
  EXPECT_FALSE(job->fields.by_default);
  ASSERT_EQ(job->sequences.size(), 3u);
  for (const engine::SequenceJob& sequence : job->sequences) {
    EXPECT_TRUE(sequence.edge_status.ok()) << sequence.edge_status;
  }
  EXPECT_EQ(std::get<engine::PagedSource>(job->sequences[1].source).pool, "p");
  EXPECT_EQ(std::get<engine::StoredSource>(job->sequences[2].source).sequence, "s");
}

TEST(CompressFromProto, SharesInlineBytesInsteadOfCopyingThem) {
  auto request = GoodRequest();
  const void* bytes = request->sequences(0).inline_().k().data().data();
  auto job = Parse(request);
  ASSERT_TRUE(job.ok()) << job.status();
  const auto& source = std::get<engine::InlineSource>(job->sequences[0].source);
  EXPECT_EQ(source.k, bytes);
  EXPECT_EQ(source.tokens, 3);
  const std::weak_ptr<Request> alive = request;
  request.reset();
  EXPECT_FALSE(alive.expired());
  job->sequences.clear();
  EXPECT_TRUE(alive.expired());
}

TEST(CompressFromProto, RefusesTheWholeCallForFaultsOfTheWholeCall) {
  const Spoiled<Request> cases[] = {
      {"request_id", "got 129 bytes, want at most 128",
       [](Request* r) { r->set_request_id(std::string(129, 'r')); }},
      {"model", "want models/", [](Request* r) { r->set_model("m"); }},
      {"policy.placement", "got 77",
       [](Request* r) { r->mutable_policy()->set_placement(static_cast<v1::Placement>(77)); }},
      {"response_mask[1]", "want kept, positions",
       [](Request* r) {
         r->mutable_response_mask()->add_paths("kept");
         r->mutable_response_mask()->add_paths("kvern");
       }},
      {"sequences", "got 0, want 1..1024", [](Request* r) { r->clear_sequences(); }},
      {"sequences[1].sequence_id", "got 0 bytes",
       [](Request* r) { r->mutable_sequences(1)->clear_sequence_id(); }},
      {"sequences[2].sequence_id", "the id of an earlier sequence",
       [](Request* r) { r->mutable_sequences(2)->set_sequence_id("paged"); }},
  };
  for (const Spoiled<Request>& one : cases) {
    SCOPED_TRACE(one.field);
    const auto request = GoodRequest();
    one.spoil(request.get());
    ExpectBadField(Parse(request).status(), one.field, one.message);
  }
}

TEST(CompressFromProto, RefusesMoreInlineBytesThanTheLimit) {
  Limits limits;
  limits.inline_bytes = 383;  // k and v are 192 bytes each
  ExpectBadField(Parse(GoodRequest(), limits).status(), "sequences", "got 384 inline bytes");
  limits.inline_bytes = 384;
  EXPECT_TRUE(Parse(GoodRequest(), limits).ok());
}

// Spoils sequence `index` and expects the fault there and nowhere else.
void ExpectSequenceFault(int index, const Spoiled<v1::SequenceRequest>& one) {
  SCOPED_TRACE(one.field);
  const auto request = GoodRequest();
  one.spoil(request->mutable_sequences(index));
  const auto job = Parse(request);
  ASSERT_TRUE(job.ok()) << job.status();
  for (int i = 0; i < 3; ++i) {
    if (i == index) {
      ExpectBadField(job->sequences[i].edge_status, one.field, one.message);
    } else {
      EXPECT_TRUE(job->sequences[i].edge_status.ok()) << job->sequences[i].edge_status;
    }
  }
}

TEST(CompressFromProto, ReportsAnInlineFaultAtItsSequence) {
  using Sequence = v1::SequenceRequest;
  const Spoiled<Sequence> cases[] = {
      {"sequences[0].source", "want paged, stored or inline",
       [](Sequence* s) { s->clear_inline_(); }},
      {"sequences[0].inline.k.dtype", "want DTYPE_BF16",
       [](Sequence* s) { s->mutable_inline_()->mutable_k()->clear_dtype(); }},
      {"sequences[0].inline.k.shape", "got 3 axes, want [layers, kv_heads, tokens, head_dim]",
       [](Sequence* s) {
         SetTensor({2, 2, 24}, v1::DTYPE_BF16, s->mutable_inline_()->mutable_k());
       }},
      {"sequences[0].inline.k.shape[2]", "got -3",
       [](Sequence* s) { s->mutable_inline_()->mutable_k()->set_shape(2, -3); }},
      {"sequences[0].inline.k.shape[0]", "want 0..512",
       [](Sequence* s) {
         s->mutable_inline_()->mutable_k()->set_shape(0, std::numeric_limits<int64_t>::max());
       }},
      {"sequences[0].inline.k.data", "got 192 bytes, want 256",
       [](Sequence* s) { s->mutable_inline_()->mutable_k()->set_shape(2, 4); }},
      {"sequences[0].inline.v.shape", "got 2 on axis 2, want k's 3",
       [](Sequence* s) {
         SetTensor({2, 2, 2, 8}, v1::DTYPE_BF16, s->mutable_inline_()->mutable_v());
       }},
      {"sequences[0].inline.v.dtype", "got f16, want k's bf16",
       [](Sequence* s) { s->mutable_inline_()->mutable_v()->set_dtype(v1::DTYPE_F16); }},
      {"sequences[0].inline.layer_indices[0]", "got 2, want 0..1",
       [](Sequence* s) { s->mutable_inline_()->add_layer_indices(2); }},
      {"sequences[0].inline.k.shape", "got 2 layers, want one per layer index, 1",
       [](Sequence* s) { s->mutable_inline_()->add_layer_indices(1); }},
      {"sequences[0].readonly_prefix_tokens", "without a paged source",
       [](Sequence* s) { s->set_readonly_prefix_tokens(1); }},
      {"sequences[0].num_logical_tokens", "got 2, want 3..",
       [](Sequence* s) { s->set_num_logical_tokens(2); }},
      {"sequences[0].protected[0].end", "got 4, want 0..3",
       [](Sequence* s) { s->add_protected_()->set_end(4); }},
      {"sequences[0].protected[0].begin", "got 1, want 0..0",
       [](Sequence* s) { s->add_protected_()->set_begin(1); }},
  };
  for (const auto& one : cases) ExpectSequenceFault(0, one);
}

TEST(CompressFromProto, ReportsAPagedFaultAtItsSequence) {
  using Sequence = v1::SequenceRequest;
  const Spoiled<Sequence> cases[] = {
      {"sequences[1].paged.pool", "want pools/",
       [](Sequence* s) { s->mutable_paged()->clear_pool(); }},
      {"sequences[1].paged.num_tokens", "got -1",
       [](Sequence* s) { s->mutable_paged()->set_num_tokens(-1); }},
      {"sequences[1].paged.num_tokens", "want 0..4194304",
       [](Sequence* s) { s->mutable_paged()->set_num_tokens((int64_t{1} << 22) + 1); }},
      {"sequences[1].paged.lengths[1]", "got 11, want 0..10",
       [](Sequence* s) {
         s->mutable_paged()->add_lengths(10);
         s->mutable_paged()->add_lengths(11);
       }},
      {"sequences[1].readonly_prefix_tokens", "got 11, want 0..10",
       [](Sequence* s) { s->set_readonly_prefix_tokens(11); }},
      {"sequences[1].positions.values", "got 1 positions, want one per token, 10",
       [](Sequence* s) { s->mutable_positions()->add_values(0); }},
      {"sequences[1].policy.scorers[0].name", "want a stage's name",
       [](Sequence* s) { s->mutable_policy()->add_scorers(); }},
  };
  for (const auto& one : cases) ExpectSequenceFault(1, one);
}

TEST(CompressFromProto, ReportsTooManyBlockIds) {
  Limits limits;
  limits.blocks_per_table = 2;
  const auto request = GoodRequest();
  for (uint32_t id = 0; id < 2; ++id)
    request->mutable_sequences(1)->mutable_paged()->add_block_ids(id);
  const auto job = Parse(request, limits);
  ASSERT_TRUE(job.ok());
  ExpectBadField(job->sequences[1].edge_status, "sequences[1].paged.block_ids",
                 "got 3 block ids, want at most 2");
}

TEST(CompressFromProto, ChecksPositionsRowByRow) {
  using Sequence = v1::SequenceRequest;
  const auto set = [](std::vector<int32_t> values, bool per_head) {
    return [=](Sequence* s) {
      s->mutable_positions()->mutable_values()->Assign(values.begin(), values.end());
      s->mutable_positions()->set_per_head(per_head);
    };
  };
  ExpectSequenceFault(0,
                      {"sequences[0].positions.values[2]", "got 5 after 5", set({0, 5, 5}, false)});
  ExpectSequenceFault(
      0, {"sequences[0].positions.values[0]", "got -1, want 0 or more", set({-1, 0, 1}, false)});
  ExpectSequenceFault(
      0, {"sequences[0].positions.values", "want 4 rows of 3", set({0, 1, 2, 0, 1, 2}, true)});
  ExpectSequenceFault(0, {"sequences[0].positions.values[2]", "after a -1 fill",
                          set({0, -1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}, true)});
  ExpectSequenceFault(0, {"sequences[0].positions.values", "got 9, want below num_logical_tokens 9",
                          [](Sequence* s) {
                            s->set_num_logical_tokens(9);
                            for (const int position : {0, 8, 9}) {
                              s->mutable_positions()->add_values(position);
                            }
                          }});
  const auto request = GoodRequest();
  set({0, 1, -1, 0, 1, 2, 4, 5, 9, 0, -1, -1}, true)(request->mutable_sequences(0));
  const auto job = Parse(request);
  EXPECT_TRUE(job->sequences[0].edge_status.ok()) << job->sequences[0].edge_status;
  EXPECT_TRUE(job->sequences[0].per_head_positions);
}

TEST(CompressFromProto, ChecksSideTensorsAgainstModelAndSource) {
  using Sequence = v1::SequenceRequest;
  const Spoiled<Sequence> cases[] = {
      {"sequences[0].side.q_window.shape[1]", "got 3 q_heads, want 4",
       [](Sequence* s) {
         SetTensor({2, 3, 1, 8}, v1::DTYPE_BF16, s->mutable_side()->mutable_q_window());
       }},
      {"sequences[0].side.q_window.shape[0]", "got 1 layers, want 2",
       [](Sequence* s) {
         SetTensor({1, 4, 1, 8}, v1::DTYPE_BF16, s->mutable_side()->mutable_q_window());
       }},
      {"sequences[0].side.q_window.shape", "got a window of 4, want at most the 3 tokens",
       [](Sequence* s) {
         SetTensor({2, 4, 4, 8}, v1::DTYPE_BF16, s->mutable_side()->mutable_q_window());
       }},
      {"sequences[0].side.attention_mass.dtype", "got f16, want f32",
       [](Sequence* s) {
         SetTensor({2, 2, 3}, v1::DTYPE_F16, s->mutable_side()->mutable_attention_mass());
       }},
      {"sequences[0].side.external_scores.shape[2]", "got 4 tokens, want 3",
       [](Sequence* s) {
         SetTensor({2, 2, 4}, v1::DTYPE_F32, s->mutable_side()->mutable_external_scores());
       }},
  };
  for (const auto& one : cases) ExpectSequenceFault(0, one);
}

TEST(CompressFromProto, CopiesSideTensorsAsFloatsAndLetsNanPass) {
  const auto request = GoodRequest();
  v1::SideTensors* side = request->mutable_sequences(0)->mutable_side();
  SetTensor({2, 4, 1, 8}, v1::DTYPE_BF16, side->mutable_q_window());
  SetTensor({2, 2, 3}, v1::DTYPE_F32, side->mutable_external_scores());
  std::vector<float> scores(12, 1.5f);
  scores[7] = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(side->mutable_external_scores()->mutable_data()->data(), scores.data(), 48);
  const auto job = Parse(request);
  ASSERT_TRUE(job.ok()) << job.status();
  const engine::SequenceJob& sequence = job->sequences[0];
  ASSERT_TRUE(sequence.edge_status.ok()) << sequence.edge_status;
  EXPECT_EQ(sequence.side_layers, 2);
  EXPECT_EQ(sequence.side.window, 1);
  EXPECT_EQ(sequence.side.q_window.size(), 64u);
  EXPECT_EQ(sequence.side.q_window[0], 0.011474609375f);  // bf16 0x3c3c
  EXPECT_TRUE(std::isnan(sequence.side.external_scores[7]));
  EXPECT_EQ(sequence.side.external_scores[8], 1.5f);
}

TEST(CompressFromProto, LeavesGeometryToTheEngineWithoutAModel) {
  const auto request = GoodRequest();
  SetTensor({3, 5, 1, 16}, v1::DTYPE_F32,
            request->mutable_sequences(0)->mutable_inline_()->mutable_k());
  SetTensor({3, 5, 1, 16}, v1::DTYPE_F32,
            request->mutable_sequences(0)->mutable_inline_()->mutable_v());
  const Limits limits;
  const auto job = FromProto(request, Edge{.limits = limits, .model = nullptr});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(job->sequences[0].edge_status.ok());
}

TEST(CompressFromProto, TakesAnEmptySequence) {
  const auto request = GoodRequest();
  SetTensor({2, 2, 0, 8}, v1::DTYPE_F16,
            request->mutable_sequences(0)->mutable_inline_()->mutable_k());
  SetTensor({2, 2, 0, 8}, v1::DTYPE_F16,
            request->mutable_sequences(0)->mutable_inline_()->mutable_v());
  const auto job = Parse(request);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(job->sequences[0].edge_status.ok()) << job->sequences[0].edge_status;
}

TEST(ReleaseFromProto, BoundsTheIds) {
  v1::ReleaseSequencesRequest request;
  for (int i = 0; i < 4096; ++i) request.add_sequence_ids("s");
  EXPECT_TRUE(FromProto(request).ok());
  request.set_sequence_ids(3, "");
  ExpectBadField(FromProto(request).status(), "sequence_ids[3]", "got 0 bytes");
  request.set_sequence_ids(3, "s");
  request.add_sequence_ids("s");
  ExpectBadField(FromProto(request).status(), "sequence_ids", "got 4097 ids, want at most 4096");
}

}  // namespace
}  // namespace kvern::rpc
