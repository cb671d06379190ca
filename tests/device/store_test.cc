// The store on the device: what is stored there equals what the ref backend stores in host memory,
// and nothing of it needs a device that is lost.
#include "absl/time/clock.h"
#include "simt/config.h"
#include "tests/device/device_fixture.h"

namespace kvern::engine {
namespace {

using memory::Store;
using memory::StoredInfo;
using memory::StoredSequence;
using pipeline::Placement;

constexpr int64_t kTokens = 150;  // of three store blocks, the last one not full

std::vector<std::byte> Bytes(const StoredSequence& sequence, std::span<const KvRef> layers) {
  std::vector<std::byte> bytes;
  for (const KvRef& layer : layers) {
    for (int64_t head = 0; head < layer.kv_heads; ++head) {
      for (int64_t token = 0; token < layer.Length(head); ++token) {
        bytes.resize(bytes.size() + kRowBytes);
        EXPECT_TRUE(sequence
                        .CopyOut(layer.Address(head, token),
                                 std::span(bytes).last(static_cast<size_t>(kRowBytes)))
                        .ok());
      }
    }
  }
  return bytes;
}

std::vector<std::byte> DenseBytes(const StoredSequence& sequence) {
  std::vector<KvRef> layers;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    layers.push_back(sequence.Keys(layer));
    layers.push_back(sequence.Values(layer));
  }
  return Bytes(sequence, layers);
}

// The device's memory faults for the host: nothing but copies and ops may touch a page.
class StoreOnDevice : public DeviceTest {
 protected:
  StoreOnDevice() {
    simt::Current().hide_device_memory = true;
    Restart();
  }
  ~StoreOnDevice() override {
    engine_.reset();
    simt::Current().hide_device_memory = false;
  }

  // The same engine on the ref backend, whose store is host memory.
  void RestartOnRef() {
    make_backend_ = [] { return MakeBackend({.name = "ref"}).value(); };
    Start(Limits());
  }
  static StoredInfo InfoOf(const std::string& id, int64_t tokens) {
    StoredInfo info;
    info.id = id;
    info.model = "small";
    info.layer_indices = {0, 1};
    info.kv_heads = kKvHeads;
    info.head_dim = kHeadDim;
    info.num_tokens = info.logical_tokens = tokens;
    return info;
  }
  // Random rows, copied in from the host.
  std::shared_ptr<StoredSequence> Fill(StoredInfo info) {
    auto sequence = engine_->Store().AllocateDense(std::move(info));
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (const KvRef& rows : {(*sequence)->Keys(layer), (*sequence)->Values(layer)}) {
        for (int64_t head = 0; head < kKvHeads; ++head) {
          for (int64_t token = 0; token < rows.Length(head); ++token) {
            BFloat16 row[kHeadDim];
            for (BFloat16& value : row) value = FromFloat<BFloat16>(normal(random));
            EXPECT_TRUE(
                (*sequence)->CopyIn(std::as_bytes(std::span(row)), rows.Address(head, token)).ok());
          }
        }
      }
    }
    return *std::move(sequence);
  }

  // Stored dense, compressed where it lies to fewer dense tokens, then packed from there.
  struct Trail {
    std::vector<std::byte> dense, blocks, k, v;
    std::string table;
  };
  Trail Follow(const pipeline::Policy& packing) {
    Trail trail;
    Store& store = engine_->Store();
    EXPECT_TRUE(store.Publish(Fill(InfoOf("s", kTokens)), Store::Commit::kNew, 0).ok());
    SequenceJob job;
    job.sequence_id = "any";
    job.source = StoredSource{"s"};
    EXPECT_EQ(RunOne(KeyNorm(70, Placement::kToStore), job).outcome, Outcome::kApplied);
    trail.dense = DenseBytes(**store.Peek("s"));
    job.epoch = 1;
    EXPECT_EQ(RunOne(packing, job).outcome, Outcome::kApplied);
    const auto packed = *store.Peek("s");
    EXPECT_TRUE(packed->Packed());
    trail.blocks.resize(packed->Blocks().size());
    EXPECT_TRUE(packed->CopyOut(packed->Blocks().data(), trail.blocks).ok());
    const auto table = std::as_bytes(std::span(packed->Info().table));
    trail.table.assign(reinterpret_cast<const char*>(table.data()), table.size());
    EXPECT_TRUE(engine_->DecodeStored(*packed, absl::InfiniteFuture(), &trail.k, &trail.v).ok());
    return trail;
  }
};

TEST_F(StoreOnDevice, HoldsTheBytesThatHostMemoryWould) {
  for (const auto& [k, v] : {std::pair{"i8t+rm", "lm4"}, {"lm4+rm", "raw16"}}) {
    SCOPED_TRACE(absl::StrCat(k, " ", v));
    pipeline::Policy packing = KeyNorm(40, Placement::kToStore);
    packing.k_codec = k;
    packing.v_codec = v;
    Restart();
    ASSERT_TRUE(engine_->Store().OnDevice());
    const Trail got = Follow(packing);
    RestartOnRef();
    ASSERT_FALSE(engine_->Store().OnDevice());
    const Trail want = Follow(packing);
    EXPECT_FALSE(want.dense.empty() || want.blocks.empty());
    EXPECT_TRUE(got.dense == want.dense);
    EXPECT_TRUE(got.blocks == want.blocks);
    EXPECT_EQ(got.table, want.table);
    EXPECT_TRUE(got.k == want.k && got.v == want.v);
  }
}

TEST_F(StoreOnDevice, PacksIntoPagesThatOthersLeft) {
  // Every page was written once, so that a row which counts on zeros would show.
  Store& store = engine_->Store();
  auto all = store.AllocatePacked(InfoOf("all", 1), store.CapacityBytes());
  ASSERT_TRUE(all.ok()) << all.status();
  const std::vector<std::byte> ones((*all)->Blocks().size(), std::byte{0xFF});
  ASSERT_TRUE((*all)->CopyIn(ones, (*all)->Blocks().data()).ok());
  all->reset();
  EXPECT_EQ(store.UsedBytes(), 0);
  pipeline::Policy packing = KeyNorm(40, Placement::kToStore);
  packing.k_codec = "lm4+rm";
  packing.v_codec = "lm4";
  const Trail got = Follow(packing);
  RestartOnRef();
  EXPECT_TRUE(got.blocks == Follow(packing).blocks);
}

TEST_F(StoreOnDevice, CopiesTokensOfEveryHeadForAnAppend) {
  StoredInfo info = InfoOf("short", kTokens);
  info.lengths = {150, 3, 64, 65};
  const auto from = Fill(info);
  info.num_tokens = kTokens + 10;
  for (int32_t& length : info.lengths) length += 10;
  const auto to = *engine_->Store().AllocateDense(info);
  ASSERT_TRUE(engine_->CopyStored(*from, *to, absl::InfiniteFuture()).ok());
  std::vector<KvRef> copied, behind;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    for (KvRef rows : {to->Keys(layer), to->Values(layer)}) {
      rows.lengths = from->Info().lengths.data() + layer * kKvHeads;
      copied.push_back(rows);
      for (int64_t head = 0; head < kKvHeads; ++head) {
        std::byte row[kRowBytes];
        ASSERT_TRUE(to->CopyOut(rows.Address(head, rows.Length(head)), row).ok());
        EXPECT_TRUE(std::all_of(row, row + kRowBytes, [](auto b) { return b == std::byte{0}; }));
      }
    }
  }
  EXPECT_TRUE(Bytes(*to, copied) == DenseBytes(*from));
  EXPECT_TRUE(absl::IsDeadlineExceeded(engine_->CopyStored(*from, *to, absl::InfinitePast())));
}

TEST_F(StoreOnDevice, RefusesMoreThanTheDeviceHasRoomFor) {
  Limits limits;
  limits.store_bytes = int64_t{64} << 20;
  const auto engine = Engine::Create({.limits = limits, .backend = make_backend_()});
  EXPECT_TRUE(absl::IsResourceExhausted(engine.status())) << engine.status();
  EXPECT_NE(engine.status().message().find("--store-memory host"), absl::string_view::npos);
  EXPECT_TRUE(Engine::Create(
                  {.limits = limits, .backend = make_backend_(), .store_place = StorePlace::kHost})
                  .ok());
}

// What a lost device holds is never given back by it, so nothing may wait for that.
class LostStore : public StoreOnDevice, public testing::WithParamInterface<simt::FaultKind> {};

TEST_P(LostStore, IsFreedWithoutTouchingTheDevice) {
  Store& store = engine_->Store();
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(store.Publish(Fill(InfoOf(id, kTokens)), Store::Commit::kNew, 0).ok());
  }
  auto held = *store.Find("a");
  const auto unpublished = Fill(InfoOf("c", kTokens));
  simt::Faults::Inject({GetParam(), 1, ""});
  std::byte row[kRowBytes];
  EXPECT_FALSE(held->CopyOut(held->Keys(0).Address(0, 0), row).ok());
  ASSERT_FALSE(engine_->Health().ok());
  EXPECT_EQ(ReasonOf(engine_->StoreHealth()), "DEVICE_LOST");

  const int64_t calls = simt::Faults::Calls();
  const absl::Time start = absl::Now();
  EXPECT_TRUE(store.Delete("a"));
  EXPECT_TRUE(store.Delete("b"));
  EXPECT_FALSE(store.AllocateDense(InfoOf("d", kTokens)).ok());
  EXPECT_EQ(ReasonOf(engine_->CopyStored(*held, *unpublished, absl::InfiniteFuture())),
            "DEVICE_LOST");
  engine_.reset();
  held.reset();  // the last holder outlives the engine
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(simt::Faults::Calls(), calls) << "a call touched the dead context";
}
INSTANTIATE_TEST_SUITE_P(All, LostStore,
                         testing::Values(simt::FaultKind::kDeviceLost, simt::FaultKind::kEcc,
                                         simt::FaultKind::kHang));

}  // namespace
}  // namespace kvern::engine
