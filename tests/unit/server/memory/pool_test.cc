// Layouts that engines really use pass; every way to leave the region or to collide is refused.
#include "server/memory/pool.h"

#include <limits>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/memory/memfd.h"

namespace kvern::memory {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kBlocks = 5;
constexpr int64_t kHeads = 2;
constexpr int64_t kTokens = 4;
constexpr int64_t kDims = 8;
constexpr int64_t kElement = 2;
constexpr int64_t kBlockBytes = kHeads * kTokens * kDims * kElement;  // of K or V
constexpr int64_t kRegionBytes = 1 << 14;

constexpr KvStrides kNhd = {kBlockBytes, kDims* kElement, kHeads* kDims* kElement, kElement};
constexpr KvStrides kHnd = {kBlockBytes, kTokens* kDims* kElement, kDims* kElement, kElement};

PoolSpec SpecOf(const PoolView& k, const PoolView& v) {
  PoolSpec spec;
  spec.model = "m";
  spec.kv_heads = kHeads;
  spec.head_dim = kDims;
  spec.block_tokens = kTokens;
  spec.num_blocks = kBlocks;
  spec.layers = {{0, k, v}};
  return spec;
}
// V behind K, as engines with two tensors per layer have it.
PoolSpec PlainSpec() { return SpecOf({0, 0, kNhd}, {0, kBlocks * kBlockBytes, kNhd}); }

class ValidatePoolTest : public ::testing::Test {
 protected:
  absl::Status Validate(const PoolSpec& spec) { return ValidatePool(spec, regions_, Limits()); }
  void ExpectRefused(const PoolSpec& spec, const std::string& field, const std::string& text) {
    const absl::Status status = Validate(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(FieldOf(status), field);
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  const std::vector<std::shared_ptr<Region>> regions_ = {MakeRegion(kRegionBytes)};
};

TEST_F(ValidatePoolTest, TakesTokenMajorBlocks) { EXPECT_TRUE(Validate(PlainSpec()).ok()); }

TEST_F(ValidatePoolTest, TakesHeadMajorBlocks) {
  EXPECT_TRUE(Validate(SpecOf({0, 0, kHnd}, {0, kBlocks * kBlockBytes, kHnd})).ok());
}

TEST_F(ValidatePoolTest, TakesKeysAndValuesPackedInOneRow) {
  const int64_t row = 2 * kDims * kElement;
  const KvStrides strides = {2 * kBlockBytes, kTokens * row, row, kElement};
  EXPECT_TRUE(Validate(SpecOf({0, 0, strides}, {0, kDims * kElement, strides})).ok());
}

TEST_F(ValidatePoolTest, TakesColumnMajorKeyTilesBesideRowMajorValues) {
  const KvStrides columns = {2 * kBlockBytes, kTokens * kDims * kElement, kElement,
                             kTokens * kElement};
  KvStrides rows = kHnd;
  rows.block = 2 * kBlockBytes;
  EXPECT_TRUE(Validate(SpecOf({0, 0, columns}, {0, kBlockBytes, rows})).ok());
}

TEST_F(ValidatePoolTest, TakesLayersInsideABlock) {
  PoolSpec spec = PlainSpec();
  KvStrides strides = kNhd;
  strides.block = 6 * kBlockBytes;
  spec.layers.clear();
  for (int32_t layer = 0; layer < 3; ++layer) {
    spec.layers.push_back({layer,
                           {0, 2 * layer * kBlockBytes, strides},
                           {0, (2 * layer + 1) * kBlockBytes, strides}});
  }
  EXPECT_TRUE(Validate(spec).ok());
}

TEST_F(ValidatePoolTest, TakesNegativeStridesThatStayInside) {
  KvStrides strides = kNhd;
  strides.block = -kBlockBytes;
  EXPECT_TRUE(
      Validate(SpecOf({0, (kBlocks - 1) * kBlockBytes, strides}, {0, kBlocks * kBlockBytes, kNhd}))
          .ok());
  ExpectRefused(SpecOf({0, (kBlocks - 2) * kBlockBytes, strides}, {0, kBlocks * kBlockBytes, kNhd}),
                "pool.layers[0].k", "leave the region");
}

TEST_F(ValidatePoolTest, FitsToTheLastByte) {
  const int64_t last = kRegionBytes - kBlocks * kBlockBytes;
  EXPECT_TRUE(Validate(SpecOf({0, 0, kNhd}, {0, last, kNhd})).ok());
  ExpectRefused(SpecOf({0, 0, kNhd}, {0, last + kElement, kNhd}), "pool.layers[0].v",
                "leave the region");
}

TEST_F(ValidatePoolTest, RejectsNumbersThatWouldWrapAround) {
  for (int64_t KvStrides::*axis :
       {&KvStrides::block, &KvStrides::head, &KvStrides::token, &KvStrides::dim}) {
    for (const int64_t stride :
         {INT64_MAX - 1, INT64_MIN, int64_t{1} << 62, int64_t{1} << 32, -(int64_t{1} << 32)}) {
      PoolSpec spec = PlainSpec();
      spec.layers[0].k.strides.*axis = stride;
      EXPECT_FALSE(Validate(spec).ok()) << stride;
      spec.num_blocks = UINT32_MAX;
      EXPECT_FALSE(Validate(spec).ok()) << stride;
    }
  }
  for (const int64_t base : {int64_t{-2}, INT64_MIN, INT64_MAX - 1, kRegionBytes}) {
    PoolSpec spec = PlainSpec();
    spec.layers[0].k.base_offset = base;
    ExpectRefused(spec, "pool.layers[0].k.base_offset", "want 0 to");
  }
}

TEST_F(ValidatePoolTest, RejectsWhatIsNoMultipleOfTheElement) {
  PoolSpec spec = PlainSpec();
  spec.layers[0].v.base_offset += 1;
  ExpectRefused(spec, "pool.layers[0].v.base_offset", "multiple");
  spec = PlainSpec();
  spec.layers[0].k.strides.token += 1;
  ExpectRefused(spec, "pool.layers[0].k.token_stride", "multiple");
}

TEST_F(ValidatePoolTest, RejectsTwoElementsAtOneAddress) {
  PoolSpec spec = PlainSpec();
  spec.layers[0].k.strides.head = 0;
  ExpectRefused(spec, "pool.layers[0].k", "share an address");
  spec = PlainSpec();
  spec.layers[0].k.strides.block = kBlockBytes / 2;
  ExpectRefused(spec, "pool.layers[0].k", "share an address");
}

TEST_F(ValidatePoolTest, RejectsValuesOverKeys) {
  ExpectRefused(SpecOf({0, 0, kNhd}, {0, 0, kNhd}), "pool.layers[0].v", "overlaps");
  ExpectRefused(SpecOf({0, 0, kNhd}, {0, kBlocks * kBlockBytes - kElement, kNhd}),
                "pool.layers[0].v", "overlaps");
  const int64_t row = 2 * kDims * kElement;
  const KvStrides packed = {2 * kBlockBytes, kTokens * row, row, kElement};
  ExpectRefused(SpecOf({0, 0, packed}, {0, (kDims - 1) * kElement, packed}), "pool.layers[0].v",
                "overlaps");
}

TEST_F(ValidatePoolTest, RejectsLayersOverEachOther) {
  PoolSpec spec = PlainSpec();
  spec.layers.push_back({1, {0, 1 << 13, kNhd}, spec.layers[0].k});
  ExpectRefused(spec, "pool.layers[1].v", "overlaps pool.layers[0].k");
}

TEST_F(ValidatePoolTest, RejectsGeometryBeyondTheLimits) {
  const auto refuse = [&](const std::string& field, auto change) {
    PoolSpec spec = PlainSpec();
    change(&spec);
    ExpectRefused(spec, field, "want");
  };
  refuse("pool.model", [](PoolSpec* spec) { spec->kv_heads = 0; });
  refuse("pool.model", [](PoolSpec* spec) { spec->kv_heads = 10240; });
  refuse("pool.model", [](PoolSpec* spec) { spec->head_dim = 12; });
  refuse("pool.model", [](PoolSpec* spec) { spec->head_dim = 10240; });
  refuse("pool.block_tokens", [](PoolSpec* spec) { spec->block_tokens = 0; });
  refuse("pool.block_tokens", [](PoolSpec* spec) { spec->block_tokens = 2560; });
  refuse("pool.num_blocks", [](PoolSpec* spec) { spec->num_blocks = 0; });
  refuse("pool.num_blocks", [](PoolSpec* spec) { spec->num_blocks = int64_t{1} << 32; });
  refuse("pool.max_shape_class", [](PoolSpec* spec) { spec->max_shape_class = 5; });
  refuse("pool.layers", [](PoolSpec* spec) { spec->layers.clear(); });
  refuse("pool.layers", [](PoolSpec* spec) { spec->layers.resize(5120); });
  refuse("pool.layers[0].layer", [](PoolSpec* spec) { spec->layers[0].layer = -1; });
  refuse("pool.layers[1].layer", [](PoolSpec* spec) { spec->layers.push_back(spec->layers[0]); });
  refuse("pool.layers[0].k.region", [](PoolSpec* spec) { spec->layers[0].k.region = 1; });
  refuse("pool.layers[0].k.region", [](PoolSpec* spec) { spec->layers[0].k.region = -1; });
}

TEST(Pool, ViewsFollowTheBlockTable) {
  Pool pool;
  pool.spec = PlainSpec();
  pool.regions = {MakeRegion(kRegionBytes)};
  const std::vector<uint32_t> ids = {4, 0, 2};
  const KvRef keys = pool.Keys(0, ids, 10);
  const KvRef values = pool.Values(0, ids, 10);
  EXPECT_EQ(keys.tokens, 10);
  EXPECT_EQ(keys.block_tokens, kTokens);
  EXPECT_EQ(keys.lengths, nullptr);
  const std::byte* data = pool.regions[0]->Data();
  EXPECT_EQ(keys.Address(0, 0), data + 4 * kBlockBytes);
  EXPECT_EQ(keys.Address(1, 9), data + 2 * kBlockBytes + kNhd.head + kNhd.token);
  EXPECT_EQ(values.Address(1, 9) - keys.Address(1, 9), kBlocks * kBlockBytes);
}

class PoolTableTest : public ::testing::Test {
 protected:
  PoolTableTest() {
    limits_.pools_per_peer = 3;
    table_ = std::make_unique<PoolTable>(limits_, &attachments_);
    attachments_.OnClose([this](int64_t connection) { table_->ExpireConnection(connection); });
  }
  PoolSpec Attached(const std::string& id, int64_t connection) {
    PoolSpec spec = PlainSpec();
    spec.id = id;
    spec.regions = {attachments_.Attach(MakeRegion(kRegionBytes), connection)};
    return spec;
  }
  Limits limits_;
  AttachmentTable attachments_;
  std::unique_ptr<PoolTable> table_;
};

TEST_F(PoolTableTest, FindsWhatItRegistered) {
  const auto pool = table_->Register(Attached("main", 1));
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ((*pool)->mapped_bytes, kRegionBytes);
  EXPECT_EQ((*pool)->connections, std::vector<int64_t>{1});
  ASSERT_TRUE(table_->Find("main").ok());
  EXPECT_EQ(*table_->Find("main"), *pool);
  EXPECT_EQ(table_->List().size(), 1u);
}

TEST_F(PoolTableTest, ChoosesFreeIds) {
  ASSERT_TRUE(table_->Register(Attached("pool-1", 1)).ok());
  const auto chosen = table_->Register(Attached("", 1));
  ASSERT_TRUE(chosen.ok());
  EXPECT_EQ((*chosen)->spec.id, "pool-2");
}

TEST_F(PoolTableTest, RejectsATakenId) {
  ASSERT_TRUE(table_->Register(Attached("main", 1)).ok());
  EXPECT_EQ(table_->Register(Attached("main", 1)).status().code(),
            absl::StatusCode::kAlreadyExists);
}

TEST_F(PoolTableTest, RejectsIdsWithOtherBytes) {
  for (const std::string id : {"a/b", "a b", "\n", "\xff"}) {
    EXPECT_EQ(FieldOf(table_->Register(Attached(id, 1)).status()), "pool.name");
  }
  EXPECT_FALSE(table_->Register(Attached(std::string(65, 'a'), 1)).ok());
  EXPECT_FALSE(table_->Register(Attached(std::string("a\0b", 3), 1)).ok());
}

TEST_F(PoolTableTest, RejectsUnknownAttachments) {
  PoolSpec spec = PlainSpec();
  spec.regions = {AttachmentId{1, 2, 3}};
  const absl::Status status = table_->Register(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "ATTACHMENT_UNKNOWN");
}

TEST_F(PoolTableTest, RejectsOneAttachmentTwiceAndRegionsOfTwoUsers) {
  PoolSpec spec = Attached("", 1);
  spec.regions.push_back(spec.regions[0]);
  EXPECT_EQ(FieldOf(table_->Register(spec).status()), "pool.regions");
  const auto foreign =
      Region::Map(MakeMemfd(4096, F_SEAL_SHRINK), static_cast<uid_t>(getuid() + 1));
  ASSERT_TRUE(foreign.ok());
  spec.regions[1] = attachments_.Attach(*foreign, 2);
  EXPECT_EQ(FieldOf(table_->Register(spec).status()), "pool.regions");
}

TEST_F(PoolTableTest, RejectsMorePoolsThanThePeersLimit) {
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(table_->Register(Attached("", 1)).ok());
  for (int i = 0; i < 27; ++i) {
    EXPECT_EQ(table_->Register(Attached("", 1)).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
  EXPECT_TRUE(table_->Unregister("pool-2"));
  EXPECT_TRUE(table_->Register(Attached("", 1)).ok());
}

TEST_F(PoolTableTest, ExpiresWithTheConnectionOfAnyRegion) {
  PoolSpec spec = Attached("both", 1);
  spec.regions.push_back(attachments_.Attach(MakeRegion(4096), 2));
  ASSERT_TRUE(table_->Register(spec).ok());
  ASSERT_TRUE(table_->Register(Attached("other", 3)).ok());
  attachments_.Close(2);
  EXPECT_EQ(ReasonOf(table_->Find("both").status()), "POOL_EXPIRED");
  EXPECT_TRUE(table_->Find("other").ok());
  EXPECT_EQ(table_->ExpireConnection(3), 1);
  EXPECT_EQ(table_->ExpireConnection(3), 0);
}

TEST_F(PoolTableTest, RefusesAttachmentsOfAClosedConnection) {
  const PoolSpec spec = Attached("late", 1);
  attachments_.Close(1);
  EXPECT_EQ(ReasonOf(table_->Register(spec).status()), "ATTACHMENT_UNKNOWN");
}

// Many layers make the check long; the connection ends once the region is leased, in its midst.
TEST_F(PoolTableTest, NeverKeepsAPoolWhoseConnectionEndedMeanwhile) {
  constexpr int32_t kLayers = 512;
  PoolSpec spec = PlainSpec();
  spec.layers.clear();
  for (int32_t layer = 0; layer < kLayers; ++layer) {
    const int64_t base = int64_t{2} * layer * kBlocks * kBlockBytes;
    spec.layers.push_back({layer, {0, base, kNhd}, {0, base + kBlocks * kBlockBytes, kNhd}});
  }
  const auto region = MakeRegion(int64_t{2} * kLayers * kBlocks * kBlockBytes);
  for (int64_t connection = 1; connection <= 3; ++connection) {
    spec.regions = {attachments_.Attach(region, connection)};
    const int64_t holders = region.use_count();
    std::thread registering([&] { table_->Register(spec).IgnoreError(); });
    while (region.use_count() == holders && table_->List().empty()) std::this_thread::yield();
    attachments_.Close(connection);
    registering.join();
    EXPECT_TRUE(table_->List().empty());
  }
}

TEST_F(PoolTableTest, HoldersKeepTheRegionMappedAfterTheEnd) {
  std::weak_ptr<Region> watch;
  {
    const auto pool = table_->Register(Attached("main", 1));
    ASSERT_TRUE(pool.ok());
    watch = (*pool)->regions[0];
    attachments_.Close(1);
    EXPECT_FALSE(table_->Find("main").ok());
    ASSERT_FALSE(watch.expired());
    (*pool)->regions[0]->Data()[0] = std::byte{1};
  }
  EXPECT_TRUE(watch.expired());
}

TEST_F(PoolTableTest, UnregisterForgetsOnce) {
  ASSERT_TRUE(table_->Register(Attached("main", 1)).ok());
  EXPECT_TRUE(table_->Unregister("main"));
  EXPECT_FALSE(table_->Unregister("main"));
  EXPECT_FALSE(table_->Find("main").ok());
}

}  // namespace
}  // namespace kvern::memory
