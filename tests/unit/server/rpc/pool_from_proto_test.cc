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
  EXPECT_EQ(spec->regions.at(0).attachment[15], 7);
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

constexpr char kUuid[] = "GPU-01234567-89ab-cdef-0123-456789abcdef";

Request OnDevice() {
  Request request = GoodRequest();
  v1::CudaIpc* ipc = request.mutable_pool()->mutable_regions(0)->mutable_cuda_ipc();
  request.mutable_pool()->mutable_regions(0)->clear_attachment_id();
  ipc->set_handle(std::string(63, 'h') + 'i');
  ipc->set_device_uuid(kUuid);
  ipc->set_offset_bytes(4096);
  ipc->set_size_bytes(100);
  return request;
}

TEST(PoolFromProto, CarriesACudaIpcHandle) {
  const auto spec = FromProto(OnDevice(), Limits{});
  ASSERT_TRUE(spec.ok()) << spec.status();
  ASSERT_NE(spec->regions.at(0).handle, nullptr);
  const DeviceHandle& handle = *spec->regions.at(0).handle;
  EXPECT_EQ(handle.kind, DeviceHandle::Kind::kCudaIpc);
  EXPECT_EQ(handle.ipc[0], std::byte{'h'});
  EXPECT_EQ(handle.ipc[63], std::byte{'i'});
  EXPECT_EQ(handle.device_uuid, kUuid);
  EXPECT_EQ(handle.offset_bytes, 4096);
  EXPECT_EQ(handle.size_bytes, 100);
}

TEST(PoolFromProto, NamesTheBadFieldOfAHandleAndNeverShowsIt) {
  using Ipc = v1::CudaIpc;
  const Spoiled<Ipc> cases[] = {
      {"handle", "got 0 bytes, want 64", [](Ipc* ipc) { ipc->clear_handle(); }},
      {"handle", "got 65 bytes", [](Ipc* ipc) { ipc->mutable_handle()->push_back('h'); }},
      {"device_uuid", "want GPU-", [](Ipc* ipc) { ipc->clear_device_uuid(); }},
      {"device_uuid", "want GPU-", [](Ipc* ipc) { ipc->mutable_device_uuid()->back() = 'g'; }},
      {"device_uuid", "want GPU-", [](Ipc* ipc) { ipc->mutable_device_uuid()->at(12) = '0'; }},
      {"size_bytes", "got 0, want 1", [](Ipc* ipc) { ipc->clear_size_bytes(); }},
      {"size_bytes", "got -1", [](Ipc* ipc) { ipc->set_size_bytes(-1); }},
      {"offset_bytes", "got -16", [](Ipc* ipc) { ipc->set_offset_bytes(-16); }},
      {"offset_bytes", "multiple of 16", [](Ipc* ipc) { ipc->set_offset_bytes(4104); }},
      {"offset_bytes", "want 0", [](Ipc* ipc) { ipc->set_offset_bytes(INT64_MAX - 15); }},
  };
  for (const Spoiled<Ipc>& one : cases) {
    SCOPED_TRACE(one.message);
    Request request = OnDevice();
    one.spoil(request.mutable_pool()->mutable_regions(0)->mutable_cuda_ipc());
    const absl::Status status = FromProto(request, Limits{}).status();
    ExpectBadField(status, std::string("pool.regions[0].cuda_ipc.") + one.field, one.message);
    EXPECT_THAT(std::string(status.message()), testing::Not(testing::HasSubstr("hhh")));
  }
  Request both = OnDevice();
  both.mutable_pool()->mutable_regions(0)->set_attachment_id(std::string(16, 'a'));
  ExpectBadField(FromProto(both, Limits{}).status(), "pool.regions[0]", "want one of them");
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
