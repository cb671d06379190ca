// Pools and models with one field wrong at a time, and attachment ids that are not the caller's.
#include <limits>

#include "tests/integration/hostile/eventually.h"
#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using absl::StatusCode;

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

template <class Message>
struct BadCase {
  std::string what;
  std::function<void(Message*)> spoil;
  Refusal want;
};

class BadPool : public HostileTest {
 protected:
  // The victim's own attachment: memory may be registered twice, so the base is valid.
  static v1::Pool Base() {
    v1::Pool pool = TestPool::Describe(server_->Pool().Attachment(), kPoolBlocks);
    pool.set_name("pools/spoiled");
    return pool;
  }
  static void ExpectAllRefused(const std::vector<BadCase<v1::Pool>>& cases) {
    const absl::Status base = server_->Client().RegisterPool(Base()).status();
    ASSERT_TRUE(base.ok()) << base;
    ASSERT_TRUE(server_->Client().UnregisterPool(Base().name()).ok());
    const int before = server_->Client().ListPools()->pools_size();
    for (const BadCase<v1::Pool>& bad : cases) {
      SCOPED_TRACE(bad.what);
      v1::Pool pool = Base();
      bad.spoil(&pool);
      ExpectRefused(server_->Client().RegisterPool(pool).status(), bad.want);
      server_->Process().Log();
    }
    EXPECT_EQ(server_->Client().ListPools()->pools_size(), before);
  }
};

TEST_F(BadPool, WithAFieldOutOfRangeIsRefusedByField) {
  using P = v1::Pool;
  ExpectAllRefused(
      {{"name with a path", [](P* p) { p->set_name("pools/../x"); }, {"pool.name"}},
       {"name too long",
        [](P* p) { p->set_name("pools/" + std::string(129, 'p')); },
        {"pool.name"}},
       {"name taken", [](P* p) { p->set_name("pools/victim"); }, {"", StatusCode::kAlreadyExists}},
       {"no model", [](P* p) { p->clear_model(); }, {"pool.model"}},
       {"model unknown",
        [](P* p) { p->set_model("models/none"); },
        {"", StatusCode::kNotFound, "MODEL_UNKNOWN"}},
       {"no dtype", [](P* p) { p->clear_dtype(); }, {"pool.dtype"}},
       {"block_tokens 0", [](P* p) { p->set_block_tokens(0); }, {"pool.block_tokens"}},
       {"block_tokens 257", [](P* p) { p->set_block_tokens(257); }, {"pool.block_tokens"}},
       {"no blocks", [](P* p) { p->set_num_blocks(0); }, {"pool.num_blocks"}},
       {"2^32 blocks", [](P* p) { p->set_num_blocks(int64_t{1} << 32); }, {"pool.num_blocks"}},
       {"no region", [](P* p) { p->clear_regions(); }, {"pool.regions"}},
       {"65 regions",
        [](P* p) {
          while (p->regions_size() < 65) *p->add_regions() = p->regions(0);
        },
        {"pool.regions"}},
       {"region twice", [](P* p) { *p->add_regions() = p->regions(0); }, {"pool.regions"}},
       {"no layer", [](P* p) { p->clear_layers(); }, {"pool.layers"}},
       {"layer twice", [](P* p) { p->mutable_layers(1)->set_layer(0); }, {"pool.layers[1].layer"}},
       {"layer negative",
        [](P* p) { p->mutable_layers(0)->set_layer(-1); },
        {"pool.layers[0].layer"}},
       {"layer of no model",
        [](P* p) { p->mutable_layers(1)->set_layer(kLayers); },
        {"pool.layers[1].layer"}},
       {"shape class",
        [](P* p) { p->set_max_shape_class(static_cast<v1::ShapeClass>(9)); },
        {"pool.max_shape_class"}},
       {"engine", [](P* p) { p->set_engine(static_cast<v1::Engine>(99)); }, {"pool.engine"}}});
}

TEST_F(BadPool, WithAViewThatLeavesItsMemoryIsRefusedByField) {
  using P = v1::Pool;
  const auto k = [](P* p) { return p->mutable_layers(0)->mutable_k(); };
  const std::string at = "pool.layers[0].k";
  const int64_t plane = TestPool::PlaneElements(kPoolBlocks) * kElementBytes;
  ExpectAllRefused(
      {{"region -1", [=](P* p) { k(p)->set_region(-1); }, {at + ".region"}},
       {"region 1", [=](P* p) { k(p)->set_region(1); }, {at + ".region"}},
       {"base negative", [=](P* p) { k(p)->set_base_offset(-2); }, {at + ".base_offset"}},
       {"base odd", [=](P* p) { k(p)->set_base_offset(1); }, {at + ".base_offset"}},
       {"base past the region",
        [=](P* p) { k(p)->set_base_offset(4 * plane); },
        {at + ".base_offset"}},
       {"base at 2^63 - 1", [=](P* p) { k(p)->set_base_offset(kMax); }, {at + ".base_offset"}},
       {"last element outside",
        [=](P* p) { p->mutable_layers(1)->mutable_v()->set_base_offset(3 * plane + 2); },
        {"pool.layers[1].v"}},
       {"block stride odd", [=](P* p) { k(p)->set_block_stride(4097); }, {at + ".block_stride"}},
       {"block stride 2^62",
        [=](P* p) { k(p)->set_block_stride(int64_t{1} << 62); },
        {at + ".block_stride"}},
       {"head stride lowest", [=](P* p) { k(p)->set_head_stride(kMin); }, {at + ".head_stride"}},
       {"token stride backwards", [=](P* p) { k(p)->set_token_stride(-64); }, {at}},
       {"dim stride 0", [=](P* p) { k(p)->set_dim_stride(0); }, {at}},
       {"all strides 0",
        [=](P* p) {
          k(p)->set_block_stride(0);
          k(p)->set_head_stride(0);
          k(p)->set_token_stride(0);
          k(p)->set_dim_stride(0);
        },
        {at}},
       {"one block more than the region",
        [=](P* p) { p->set_num_blocks(4 * kPoolBlocks + 1); },
        {at}},
       {"v over k",
        [=](P* p) { *p->mutable_layers(0)->mutable_v() = p->layers(0).k(); },
        {"pool.layers[0].v"}},
       {"layer over layer",
        [=](P* p) { p->mutable_layers(1)->mutable_k()->set_base_offset(plane); },
        {"pool.layers[1].k"}}});
}

TEST_F(BadPool, OverForgedAttachmentIdsIsNotFound) {
  std::mt19937 random(5);
  std::vector<std::string> forged = {std::string(16, '\0'), std::string(16, '\xFF')};
  for (int i = 0; i < 20; ++i) {
    std::string id = server_->Pool().Attachment();
    id[random() % id.size()] ^= static_cast<char>(1u << random() % 8);
    forged.push_back(id);
  }
  for (const std::string& id : forged) {
    v1::Pool pool = Base();
    pool.mutable_regions(0)->set_attachment_id(id);
    ExpectRefused(server_->Client().RegisterPool(pool).status(),
                  {"", StatusCode::kNotFound, "ATTACHMENT_UNKNOWN"});
  }
  for (const size_t size : {0, 1, 15, 17, 4096}) {
    v1::Pool pool = Base();
    pool.mutable_regions(0)->set_attachment_id(std::string(size, 'a'));
    ExpectRefused(server_->Client().RegisterPool(pool).status(), {"pool.regions[0].attachment_id"});
  }
}

TEST_F(BadPool, OverTheAttachmentOfAClientThatLeftIsNotFound) {
  auto other = TestPool::Register(server_->Client(), server_->Process(), "leaving", kPoolBlocks);
  ASSERT_TRUE(other.ok()) << other.status();
  v1::Pool pool = Base();
  pool.mutable_regions(0)->set_attachment_id((*other)->Attachment());
  const std::string gone = (*other)->Name();
  other->reset();
  // The server sees the closed socket on a thread of its own, and ends attachment and pool one
  // after the other.
  absl::Status status;
  EXPECT_TRUE(Eventually([&] {
    status = server_->Client().RegisterPool(pool).status();
    EXPECT_TRUE(server_->Client().UnregisterPool(pool.name()).ok());  // unknown ones succeed
    return !status.ok();
  }));
  ExpectRefused(status, {"", StatusCode::kNotFound, "ATTACHMENT_UNKNOWN"});
  v1::CompressCacheRequest request = server_->Paged();
  request.mutable_sequences(0)->mutable_paged()->set_pool(gone);
  EXPECT_TRUE(Eventually([&] { return !(status = server_->Compress(request)).ok(); }));
  ExpectRefused(status, {"", StatusCode::kNotFound, "POOL_EXPIRED"});
}

class BadModel : public HostileTest {
 protected:
  static void ExpectAllRefused(const std::vector<BadCase<v1::Model>>& cases) {
    const int before = server_->Client().ListModels()->models_size();
    for (const BadCase<v1::Model>& bad : cases) {
      SCOPED_TRACE(bad.what);
      v1::Model model = TestModel();
      bad.spoil(&model);
      ExpectRefused(server_->Client().RegisterModel(model).status(), bad.want);
      server_->Process().Log();
    }
    EXPECT_EQ(server_->Client().ListModels()->models_size(), before);
  }
};

v1::ModelSpec* Spec(v1::Model* model) { return model->mutable_spec(); }
v1::Rope* Rope(v1::Model* model) { return model->mutable_spec()->mutable_rope(); }

TEST_F(BadModel, WithAFieldOutOfRangeIsRefusedByField) {
  using M = v1::Model;
  ExpectAllRefused(
      {{"name with a path", [](M* m) { m->set_name("models/a/b"); }, {"model.name"}},
       {"name too long",
        [](M* m) { m->set_name("models/" + std::string(129, 'm')); },
        {"model.name"}},
       {"another spec", [](M* m) { Spec(m)->set_head_dim(64); }, {"", StatusCode::kAlreadyExists}},
       {"no layers", [](M* m) { Spec(m)->set_num_layers(0); }, {"model.spec.num_layers"}},
       {"513 layers", [](M* m) { Spec(m)->set_num_layers(513); }, {"model.spec.num_layers"}},
       {"no kv_heads", [](M* m) { Spec(m)->set_kv_heads(0); }, {"model.spec.kv_heads"}},
       {"1025 kv_heads", [](M* m) { Spec(m)->set_kv_heads(1025); }, {"model.spec.kv_heads"}},
       {"q_heads below kv_heads", [](M* m) { Spec(m)->set_q_heads(1); }, {"model.spec.q_heads"}},
       {"q_heads no multiple", [](M* m) { Spec(m)->set_q_heads(5); }, {"model.spec.q_heads"}},
       {"q_heads 2^31 - 1", [](M* m) { Spec(m)->set_q_heads(0x7FFFFFFF); }, {"model.spec.q_heads"}},
       {"head_dim 0", [](M* m) { Spec(m)->set_head_dim(0); }, {"model.spec.head_dim"}},
       {"head_dim 12", [](M* m) { Spec(m)->set_head_dim(12); }, {"model.spec.head_dim"}},
       {"head_dim 1032", [](M* m) { Spec(m)->set_head_dim(1032); }, {"model.spec.head_dim"}},
       {"head_dim negative", [](M* m) { Spec(m)->set_head_dim(-8); }, {"model.spec.head_dim"}},
       {"display name too long",
        [](M* m) { Spec(m)->set_display_name(std::string(257, 'd')); },
        {"model.spec.display_name"}},
       {"calibration no digest",
        [](M* m) { m->add_calibrations("calibrations/ABC"); },
        {"model.calibrations[0]"}},
       {"17 calibrations",
        [](M* m) {
          for (int i = 0; i < 17; ++i) m->add_calibrations("calibrations/" + std::string(64, '0'));
        },
        {"model.calibrations"}},
       {"calibration unknown",
        [](M* m) { m->add_calibrations("calibrations/" + std::string(64, '0')); },
        {"", StatusCode::kNotFound, "CALIBRATION_UNKNOWN"}}});
}

TEST_F(BadModel, WithARopeOutOfRangeIsRefusedByField) {
  using M = v1::Model;
  const std::string rope = "model.spec.rope";
  const auto frequency = [](float bad) {
    return [bad](M* m) {
      for (int i = 0; i < kHeadDim / 2; ++i) Rope(m)->add_inv_freq(i == 3 ? bad : 0.5f);
    };
  };
  ExpectAllRefused(
      {{"layout",
        [](M* m) { Rope(m)->set_layout(static_cast<v1::RopeLayout>(7)); },
        {rope + ".layout"}},
       {"rotary_dim odd", [](M* m) { Rope(m)->set_rotary_dim(31); }, {rope + ".rotary_dim"}},
       {"rotary_dim negative", [](M* m) { Rope(m)->set_rotary_dim(-2); }, {rope + ".rotary_dim"}},
       {"rotary_dim above head_dim",
        [](M* m) { Rope(m)->set_rotary_dim(34); },
        {rope + ".rotary_dim"}},
       {"too many frequencies",
        [](M* m) {
          for (int i = 0; i < kHeadDim; ++i) Rope(m)->add_inv_freq(1);
        },
        {rope + ".rotary_dim"}},
       {"frequencies and rotary_dim differ",
        [](M* m) {
          Rope(m)->set_rotary_dim(kHeadDim);
          Rope(m)->add_inv_freq(1);
        },
        {rope + ".inv_freq"}},
       {"frequency 0", frequency(0), {rope + ".inv_freq[3]"}},
       {"frequency negative", frequency(-1), {rope + ".inv_freq[3]"}},
       {"frequency NaN", frequency(std::nanf("")), {rope + ".inv_freq[3]"}},
       {"frequency infinite",
        frequency(std::numeric_limits<float>::infinity()),
        {rope + ".inv_freq[3]"}},
       {"theta negative", [](M* m) { Rope(m)->set_theta(-1); }, {rope + ".theta"}},
       {"theta NaN", [](M* m) { Rope(m)->set_theta(std::nan("")); }, {rope + ".theta"}},
       {"theta so small that frequencies overflow",
        [](M* m) { Rope(m)->set_theta(1e-300); },
        {rope + ".theta"}},
       {"scaling negative",
        [](M* m) { Rope(m)->set_attention_scaling(-1); },
        {rope + ".attention_scaling"}},
       {"scaling infinite",
        [](M* m) { Rope(m)->set_attention_scaling(std::numeric_limits<double>::infinity()); },
        {rope + ".attention_scaling"}}});
}

}  // namespace
}  // namespace kvern::hostile
