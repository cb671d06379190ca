// Pools at the edge: counts, enums and ids; the reach of strides is tested with server/memory.
#include "server/rpc/pool_from_proto.h"

#include <string>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

using Request = v1::RegisterPoolRequest;

Request GoodRequest() {
  Request request;
  v1::Pool* pool = request.mutable_pool();
  pool->set_model("models/m");
  pool->set_dtype(v1::DTYPE_BF16);
  pool->set_block_tokens(16);
  pool->set_num_blocks(4);
  pool->add_regions()->set_attachment_id(std::string(16, '\x07'));
  for (int layer = 0; layer < 2; ++layer) {
    v1::PoolLayer* added = pool->add_layers();
    added->set_layer(layer);
    added->mutable_v()->set_base_offset(4096);
    added->mutable_v()->set_token_stride(-32);
  }
  pool->set_engine(v1::ENGINE_VLLM);
  return request;
}

TEST(PoolFromProto, CarriesTheDescription) {
  const auto spec = FromProto(GoodRequest(), Limits{});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->id, "");
  EXPECT_EQ(spec->model, "m");
  EXPECT_EQ(spec->regions.at(0)[15], 7);
  EXPECT_EQ(spec->layers.at(1).layer, 1);
  EXPECT_EQ(spec->layers.at(1).v.base_offset, 4096);
  EXPECT_EQ(spec->layers.at(1).v.strides.token, -32);
  EXPECT_EQ(spec->max_shape_class, 2);
  EXPECT_EQ(spec->engine, memory::EngineLabel::kVllm);
}

TEST(PoolFromProto, NamesTheBadField) {
  using Pool = v1::Pool;
  const Spoiled<Pool> cases[] = {
      {"pool.name", "want pools/", [](Pool* p) { p->set_name("p"); }},
      {"pool.model", "want models/", [](Pool* p) { p->clear_model(); }},
      {"pool.dtype", "got 0, want DTYPE_BF16", [](Pool* p) { p->clear_dtype(); }},
      {"pool.block_tokens", "got 257, want 1..256", [](Pool* p) { p->set_block_tokens(257); }},
      {"pool.num_blocks", "got 0, want 1..4294967295", [](Pool* p) { p->set_num_blocks(0); }},
      {"pool.num_blocks", "got 4294967296", [](Pool* p) { p->set_num_blocks(int64_t{1} << 32); }},
      {"pool.regions", "got 0, want 1..64", [](Pool* p) { p->clear_regions(); }},
      {"pool.regions[0].attachment_id", "got 15 bytes, want 16",
       [](Pool* p) { p->mutable_regions(0)->set_attachment_id(std::string(15, 'a')); }},
      {"pool.layers", "got 0, want 1..512", [](Pool* p) { p->clear_layers(); }},
      {"pool.layers[1].layer", "got 0 after 0",
       [](Pool* p) { p->mutable_layers(1)->set_layer(0); }},
      {"pool.layers[0].layer", "got -1", [](Pool* p) { p->mutable_layers(0)->set_layer(-1); }},
      {"pool.layers[1].k.region", "got 1, want 0..0",
       [](Pool* p) { p->mutable_layers(1)->mutable_k()->set_region(1); }},
      {"pool.layers[1].v.base_offset", "got -8",
       [](Pool* p) { p->mutable_layers(1)->mutable_v()->set_base_offset(-8); }},
      {"pool.max_shape_class", "got 6",
       [](Pool* p) { p->set_max_shape_class(static_cast<v1::ShapeClass>(6)); }},
      {"pool.engine", "got 7", [](Pool* p) { p->set_engine(static_cast<v1::Engine>(7)); }},
  };
  for (const Spoiled<Pool>& one : cases) {
    SCOPED_TRACE(one.field);
    Request request = GoodRequest();
    one.spoil(request.mutable_pool());
    ExpectBadField(FromProto(request, Limits{}).status(), one.field, one.message);
  }
}

TEST(BindModel, TakesHeadsFromTheModelAndRefusesLayersItLacks) {
  memory::PoolSpec pool = *FromProto(GoodRequest(), Limits{});
  pipeline::ModelSpec model;
  model.num_layers = 2;
  model.kv_heads = 3;
  model.head_dim = 64;
  ASSERT_TRUE(BindModel(model, &pool).ok());
  EXPECT_EQ(pool.kv_heads, 3);
  EXPECT_EQ(pool.head_dim, 64);
  model.num_layers = 1;
  ExpectBadField(BindModel(model, &pool), "pool.layers[1].layer", "got 1, want 0..0");
}

}  // namespace
}  // namespace kvern::rpc
