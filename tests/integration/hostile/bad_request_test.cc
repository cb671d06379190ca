// CompressCache with one field wrong at a time: refused by name, with nothing changed.
#include <limits>

#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using Request = v1::CompressCacheRequest;
using absl::StatusCode;

constexpr int64_t kHuge = int64_t{1} << 40;

class BadRequest : public HostileTest {
 protected:
  // What is wrong is in the case: the base itself passes every check.
  static void ExpectAllRefused(const Request& base, const std::vector<BadRequestCase>& cases) {
    Request plan = base;
    plan.set_validate_only(true);
    ASSERT_TRUE(server_->Compress(plan).ok()) << server_->Compress(plan);
    for (const BadRequestCase& bad : cases) {
      SCOPED_TRACE(bad.what);
      Request request = base;
      bad.spoil(&request);
      ExpectRefused(server_->Compress(request), bad.want);
      server_->Process().Log();
    }
  }
};

v1::SequenceRequest* First(Request* request) { return request->mutable_sequences(0); }
v1::InlineSource* Inline(Request* request) { return First(request)->mutable_inline_(); }

TEST_F(BadRequest, OfTheWholeCallIsRefusedByField) {
  ExpectAllRefused(
      server_->Paged(),
      {{"request_id too long",
        [](Request* r) { r->set_request_id(std::string(129, 'a')); },
        {"request_id"}},
       {"model empty", [](Request* r) { r->clear_model(); }, {"model"}},
       {"model without prefix", [](Request* r) { r->set_model("hostile"); }, {"model"}},
       {"model with a path", [](Request* r) { r->set_model("models/../etc"); }, {"model"}},
       {"model too long",
        [](Request* r) { r->set_model("models/" + std::string(129, 'm')); },
        {"model"}},
       {"model unknown",
        [](Request* r) { r->set_model("models/none"); },
        {"", StatusCode::kNotFound, "MODEL_UNKNOWN"}},
       {"mask path unknown",
        [](Request* r) { r->mutable_response_mask()->add_paths("kv"); },
        {"response_mask[0]", StatusCode::kInvalidArgument, "", "kept, positions, scores"}},
       {"mask too long",
        [](Request* r) {
          for (int i = 0; i < 65; ++i) r->mutable_response_mask()->add_paths("k");
        },
        {"response_mask"}},
       {"no sequence", [](Request* r) { r->clear_sequences(); }, {"sequences"}},
       {"too many sequences",
        [](Request* r) {
          for (int i = 0; i < 1024; ++i) r->add_sequences()->set_sequence_id(std::to_string(i));
        },
        {"sequences", StatusCode::kInvalidArgument, "", "1024"}},
       {"id empty",
        [](Request* r) { First(r)->clear_sequence_id(); },
        {"sequences[0].sequence_id"}},
       {"id too long",
        [](Request* r) { First(r)->set_sequence_id(std::string(129, 'i')); },
        {"sequences[0].sequence_id"}},
       {"id twice",
        [](Request* r) { *r->add_sequences() = r->sequences(0); },
        {"sequences[1].sequence_id"}}});
}

TEST_F(BadRequest, OfASequenceIsRefusedByField) {
  ExpectAllRefused(
      server_->Paged(),
      {{"epoch that cannot grow",
        [](Request* r) { First(r)->set_epoch(std::numeric_limits<uint64_t>::max()); },
        {"sequences[0].epoch"}},
       {"epoch of the past",
        [](Request* r) {
          First(r)->set_sequence_id("golden");
          First(r)->set_epoch(kGoldenEpoch - 1);
        },
        {"", StatusCode::kAborted, "EPOCH_MISMATCH"}},
       {"logical negative",
        [](Request* r) { First(r)->set_num_logical_tokens(-1); },
        {"sequences[0].num_logical_tokens"}},
       {"logical below physical",
        [](Request* r) { First(r)->set_num_logical_tokens(kTokens - 1); },
        {"sequences[0].num_logical_tokens"}},
       {"logical above i32",
        [](Request* r) { First(r)->set_num_logical_tokens(int64_t{1} << 31); },
        {"sequences[0].num_logical_tokens"}},
       {"no source", [](Request* r) { First(r)->clear_source(); }, {"sequences[0].source"}},
       {"stored name",
        [](Request* r) { First(r)->mutable_stored()->set_sequence("x"); },
        {"sequences[0].stored.sequence"}},
       {"stored unknown",
        [](Request* r) { First(r)->mutable_stored()->set_sequence("sequences/none"); },
        {"", StatusCode::kNotFound, "SEQUENCE_UNKNOWN"}},
       {"prefix negative",
        [](Request* r) { First(r)->set_readonly_prefix_tokens(-16); },
        {"sequences[0].readonly_prefix_tokens"}},
       {"prefix inside a block",
        [](Request* r) { First(r)->set_readonly_prefix_tokens(17); },
        {"sequences[0].readonly_prefix_tokens"}},
       {"prefix past the end",
        [](Request* r) { First(r)->set_readonly_prefix_tokens(kTokens + 8); },
        {"sequences[0].readonly_prefix_tokens"}}});
}

void Protect(Request* request, int64_t begin, int64_t end) {
  v1::TokenRange* range = First(request)->add_protected_();
  range->set_begin(begin);
  range->set_end(end);
}

void SetPositions(Request* request, int64_t count, int32_t first, int32_t step) {
  v1::Positions* positions = First(request)->mutable_positions();
  for (int64_t i = 0; i < count; ++i) {
    positions->add_values(first + static_cast<int32_t>(i) * step);
  }
}

TEST_F(BadRequest, OfRangesAndPositionsIsRefusedByField) {
  ExpectAllRefused(server_->Paged(), {{"range begins below 0",
                                       [](Request* r) { Protect(r, -1, 4); },
                                       {"sequences[0].protected[0].begin"}},
                                      {"range ends past the end",
                                       [](Request* r) { Protect(r, 0, kTokens + 1); },
                                       {"sequences[0].protected[0].end"}},
                                      {"range ends at 2^40",
                                       [](Request* r) { Protect(r, 0, kHuge); },
                                       {"sequences[0].protected[0].end"}},
                                      {"range backwards",
                                       [](Request* r) { Protect(r, 9, 4); },
                                       {"sequences[0].protected[0].begin"}},
                                      {"ranges too many",
                                       [](Request* r) {
                                         for (int i = 0; i < 1025; ++i) Protect(r, 0, 1);
                                       },
                                       {"sequences[0].protected"}},
                                      {"positions too few",
                                       [](Request* r) { SetPositions(r, kTokens - 1, 0, 1); },
                                       {"sequences[0].positions.values"}},
                                      {"positions too many",
                                       [](Request* r) { SetPositions(r, kTokens + 1, 0, 1); },
                                       {"sequences[0].positions.values"}},
                                      {"position negative",
                                       [](Request* r) { SetPositions(r, kTokens, -1, 1); },
                                       {"sequences[0].positions.values[0]"}},
                                      {"positions that stand still",
                                       [](Request* r) { SetPositions(r, kTokens, 5, 0); },
                                       {"sequences[0].positions.values[1]"}},
                                      {"positions past the logical tokens",
                                       [](Request* r) {
                                         First(r)->set_num_logical_tokens(kTokens);
                                         SetPositions(r, kTokens, 1, 1);
                                       },
                                       {"sequences[0].positions.values"}},
                                      {"rows of another number",
                                       [](Request* r) {
                                         SetPositions(r, kTokens, 0, 1);
                                         First(r)->mutable_positions()->set_per_head(true);
                                       },
                                       {"sequences[0].positions"}},
                                      {"row cut",
                                       [](Request* r) {
                                         SetPositions(r, kTokens + 1, 0, 1);
                                         First(r)->mutable_positions()->set_per_head(true);
                                       },
                                       {"sequences[0].positions.values"}}});
}

TEST_F(BadRequest, OfInlineBytesIsRefusedByField) {
  const auto shape = [](int axis, int64_t extent) {
    return [axis, extent](Request* r) { Inline(r)->mutable_k()->set_shape(axis, extent); };
  };
  ExpectAllRefused(
      InlineRequest(kTokens),
      {{"layers descend",
        [](Request* r) {
          Inline(r)->add_layer_indices(1);
          Inline(r)->add_layer_indices(0);
        },
        {"sequences[0].inline.layer_indices[1]"}},
       {"layer of no model",
        [](Request* r) { Inline(r)->add_layer_indices(kLayers); },
        {"sequences[0].inline.layer_indices[0]"}},
       {"layers of another number",
        [](Request* r) { Inline(r)->add_layer_indices(1); },
        {"sequences[0].inline.k.shape"}},
       {"no dtype",
        [](Request* r) { Inline(r)->mutable_k()->clear_dtype(); },
        {"sequences[0].inline.k.dtype"}},
       {"unknown dtype",
        [](Request* r) { Inline(r)->mutable_k()->set_dtype(static_cast<v1::DType>(9)); },
        {"sequences[0].inline.k.dtype"}},
       {"three axes",
        [](Request* r) { Inline(r)->mutable_k()->mutable_shape()->RemoveLast(); },
        {"sequences[0].inline.k.shape"}},
       {"negative extent", shape(2, -1), {"sequences[0].inline.k.shape[2]"}},
       {"2^40 tokens", shape(2, kHuge), {"sequences[0].inline.k.shape[2]"}},
       {"2^63 - 1 layers",
        shape(0, std::numeric_limits<int64_t>::max()),
        {"sequences[0].inline.k.shape[0]"}},
       {"more tokens than bytes", shape(2, kTokens + 1), {"sequences[0].inline.k.data"}},
       {"a byte short",
        [](Request* r) { Inline(r)->mutable_k()->mutable_data()->pop_back(); },
        {"sequences[0].inline.k.data"}},
       {"no v", [](Request* r) { Inline(r)->clear_v(); }, {"sequences[0].inline.v.dtype"}},
       {"v of another dtype",
        [](Request* r) { Inline(r)->mutable_v()->set_dtype(v1::DTYPE_F16); },
        {"sequences[0].inline.v.dtype"}},
       {"v of other tokens",
        [](Request* r) { *Inline(r)->mutable_v() = KvTensor(kTokens - 1, /*seed=*/1); },
        {"sequences[0].inline.v.shape"}},
       {"heads of another model",
        [](Request* r) {
          for (v1::Tensor* t : {Inline(r)->mutable_k(), Inline(r)->mutable_v()}) {
            t->set_shape(1, 2 * kKvHeads);
            t->set_shape(3, kHeadDim / 2);
          }
        },
        {"sequences[0].inline.k.shape"}},
       {"read-only prefix",
        [](Request* r) { First(r)->set_readonly_prefix_tokens(16); },
        {"sequences[0].readonly_prefix_tokens"}}});
}

v1::Tensor FloatTensor(const std::vector<int64_t>& shape) {
  v1::Tensor tensor;
  tensor.set_dtype(v1::DTYPE_F32);
  int64_t elements = 1;
  for (const int64_t extent : shape) {
    tensor.add_shape(extent);
    elements *= extent;
  }
  tensor.set_data(std::string(elements * sizeof(float), '\0'));
  return tensor;
}

// A case that sends one side tensor.
BadRequestCase WithSide(const std::string& what, v1::Tensor* (v1::SideTensors::*member)(),
                        const v1::Tensor& tensor, const std::string& field) {
  return {what,
          [=](Request* r) { *(First(r)->mutable_side()->*member)() = tensor; },
          {"sequences[0].side" + field}};
}

TEST_F(BadRequest, OfSideTensorsIsRefusedByField) {
  const auto q = &v1::SideTensors::mutable_q_window;
  const auto mass = &v1::SideTensors::mutable_attention_mass;
  const auto scores = &v1::SideTensors::mutable_external_scores;
  v1::Tensor half = FloatTensor({kLayers, kKvHeads, kTokens});
  half.set_dtype(v1::DTYPE_F16);
  half.mutable_data()->resize(half.data().size() / 2);
  v1::Tensor cut = FloatTensor({kLayers, kQHeads, 8, kHeadDim});
  cut.mutable_data()->pop_back();
  ExpectAllRefused(
      server_->Paged(),
      {WithSide("q without dtype", q, v1::Tensor(), ".q_window.dtype"),
       WithSide("q of three axes", q, FloatTensor({kQHeads, 8, kHeadDim}), ".q_window.shape"),
       WithSide("q of other heads", q, FloatTensor({kLayers, kKvHeads, 8, kHeadDim}),
                ".q_window.shape[1]"),
       WithSide("q of other dims", q, FloatTensor({kLayers, kQHeads, 8, 8}), ".q_window.shape[3]"),
       WithSide("q of other layers", q, FloatTensor({1, kQHeads, 8, kHeadDim}), ""),
       WithSide("q longer than the sequence", q,
                FloatTensor({kLayers, kQHeads, kTokens + 1, kHeadDim}), ".q_window.shape"),
       WithSide("q a byte short", q, cut, ".q_window.data"),
       WithSide("mass of half floats", mass, half, ".attention_mass.dtype"),
       WithSide("mass of other tokens", mass, FloatTensor({kLayers, kKvHeads, kTokens - 1}),
                ".attention_mass.shape[2]"),
       WithSide("mass of other heads", mass, FloatTensor({kLayers, kQHeads, kTokens}),
                ".attention_mass.shape[1]"),
       WithSide("scores of two axes", scores, FloatTensor({kLayers, kTokens}),
                ".external_scores.shape"),
       WithSide("scores of 4 layers", scores, FloatTensor({4, kKvHeads, kTokens}), "")});
}

}  // namespace
}  // namespace kvern::hostile
