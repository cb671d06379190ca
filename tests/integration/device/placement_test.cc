// What a pool on the device holds after a call is what the cpu backend leaves in a pool on the
// host, byte for byte, whatever the layout and the way the memory was shared.
#include "client/cpp/upload.h"
#include "gtest/gtest.h"
#include "tests/integration/device/device_memory.h"

namespace kvern::device {
namespace {

constexpr int64_t kTokens = 100;
constexpr int64_t kBudget = 40;
constexpr int64_t kHeadDim = 64;

using Request = v1::CompressCacheRequest;
struct Way {
  std::string name;
  std::function<void(v1::Policy*)> change;
};

const std::vector<Way>& Ways() {
  static const auto* const ways = new std::vector<Way>{
      {"COPY_TO", [](v1::Policy* policy) { policy->set_placement(v1::PLACEMENT_COPY_TO); }},
      {"COMPACT", [](v1::Policy* policy) { policy->set_placement(v1::PLACEMENT_COMPACT); }},
      {"COMPACT, diverse, renumbered",
       [](v1::Policy* policy) {
         policy->set_placement(v1::PLACEMENT_COMPACT);
         policy->mutable_selector()->set_name("diverse");
         policy->mutable_scorers(0)->set_name("keydiff");
         policy->set_positions(v1::POSITION_MODE_RENUMBER);
       }},
      {"INDICES_ONLY",
       [](v1::Policy* policy) { policy->set_placement(v1::PLACEMENT_INDICES_ONLY); }},
      {"TO_STORE",
       [](v1::Policy* policy) {
         policy->set_placement(v1::PLACEMENT_TO_STORE);
         policy->mutable_codecs()->set_k("lm4+rm");
         policy->mutable_codecs()->set_v("i8t");
       }},
      {"TO_STORE, raw", [](v1::Policy* policy) { policy->set_placement(v1::PLACEMENT_TO_STORE); }},
  };
  return *ways;
}

// What a call left behind and answered, as far as it says the same everywhere.
struct Outcome {
  faults::Image memory;
  std::string answer;
  std::string stored;
};

class PlacementTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    host_ = new std::optional<Serving>(Serving::Start({"--backend", "cpu"}, kHeadDim));
    device_ = new std::optional<Serving>(Serving::Start(OnDevice(), kHeadDim));
  }
  static void TearDownTestSuite() {
    delete host_;
    delete device_;
  }
  void SetUp() override { ASSERT_TRUE(*host_ && *device_) << "kvernd did not start"; }

  static Request RequestOf(const faults::PoolNames& pool, const Way& way,
                           const faults::PoolLayout& layout) {
    faults::CallCase call;
    call.sequence = "s" + std::to_string(&way - Ways().data());
    call.blocks = faults::ScatteredBlocks(0, layout.BlocksFor(kTokens), 1, /*seed=*/4);
    call.tokens = kTokens;
    call.budget = kBudget;
    call.destination = faults::ScatteredBlocks(30, layout.BlocksFor(kBudget), 1, /*seed=*/5);
    Request request = faults::RequestOf(pool, call);
    way.change(request.mutable_policy());
    if (request.policy().placement() != v1::PLACEMENT_COPY_TO) {
      request.mutable_sequences(0)->mutable_paged()->clear_destination_block_ids();
    }
    return request;
  }
  static faults::Image Before(const faults::PoolLayout& layout) {
    faults::Image image = faults::CanaryImage(layout);
    faults::WriteSequence(layout,
                          faults::ScatteredBlocks(0, layout.BlocksFor(kTokens), 1, /*seed=*/4),
                          kTokens, /*seed=*/7, &image);
    return image;
  }

  // Takes the sequence from the store and forgets it: the next call may use its name.
  static absl::StatusOr<std::string> TakeStored(const Serving& serving, const std::string& name) {
    if (name.empty()) return "";
    KVERN_ASSIGN_OR_RETURN(
        const client::FetchedSequence fetched,
        client::FetchSequence(*serving.client, name, client::FetchForm::kAsStored, nullptr));
    KVERN_RETURN_IF_ERROR(serving.client->DeleteSequence(name));
    return absl::StrCat(fetched.k, fetched.v, fetched.packed);
  }
  template <class Memory>
  static absl::StatusOr<Outcome> Run(const Serving& serving, const Request& request,
                                     const Memory& memory) {
    KVERN_ASSIGN_OR_RETURN(v1::SequenceResult result,
                           faults::CompressOne(*serving.client, request));
    KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
    Outcome outcome;
    outcome.memory = memory.Now();
    KVERN_ASSIGN_OR_RETURN(outcome.stored, TakeStored(serving, result.stored_sequence()));
    result.clear_timings();
    outcome.answer = result.ShortDebugString();
    KVERN_RETURN_IF_ERROR(serving.client->ReleaseSequences({result.sequence_id()}));
    return outcome;
  }

  static void ExpectEqualOutcomes(const faults::PoolLayout& layout, Kind kind) {
    const faults::Image before = Before(layout);
    faults::SharedMemory host_memory(layout.RegionBytes());
    DeviceMemory device_memory(kind, layout.RegionBytes());
    const Serving& host = **host_;
    const Serving& device = **device_;
    const auto host_pool =
        faults::RegisterPool(*host.client, faults::BrokerPath(*host.process), layout, host_memory);
    ASSERT_TRUE(host_pool.ok()) << host_pool.status();
    const client::DeviceRegion region = device_memory.Region(device.device_uuid);
    const auto device_pool = client::DevicePool::Register(
        *device.client, DescriptionOf(layout, device.model), {&region, 1});
    ASSERT_TRUE(device_pool.ok()) << device_pool.status();
    for (const Way& way : Ways()) {
      SCOPED_TRACE(way.name);
      host_memory.Restore(before);
      device_memory.Restore(before);
      const auto want = Run(host, RequestOf(*host_pool, way, layout), host_memory);
      const auto got =
          Run(device, RequestOf({device_pool->Name(), device.model}, way, layout), device_memory);
      ASSERT_TRUE(want.ok()) << want.status();
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(faults::Difference(got->memory, want->memory), "");
      EXPECT_EQ(got->answer, want->answer);
      EXPECT_TRUE(got->stored == want->stored) << "stored bytes differ";
    }
    EXPECT_TRUE(device_pool->Renewed().ok());
  }

  static inline std::optional<Serving>* host_ = nullptr;
  static inline std::optional<Serving>* device_ = nullptr;
};

TEST_F(PlacementTest, OfMemorySharedByIpcHandleEqualsTheHosts) {
  for (const faults::PoolLayout& layout : faults::AllLayouts({.head_dim = kHeadDim})) {
    SCOPED_TRACE(layout.name);
    ExpectEqualOutcomes(layout, Kind::kIpcHandle);
  }
}

TEST_F(PlacementTest, OfMemorySharedByFileEqualsTheHosts) {
  for (const faults::PoolLayout& layout : faults::AllLayouts({.head_dim = kHeadDim})) {
    SCOPED_TRACE(layout.name);
    ExpectEqualOutcomes(layout, Kind::kFile);
  }
}

TEST_F(PlacementTest, OfTwoRegionsOfOneAllocationEqualsTheHosts) {
  const faults::PoolLayout layout = faults::HeadMajorWithPadding({.head_dim = kHeadDim});
  DeviceMemory memory(Kind::kIpcHandle, layout.RegionBytes());
  const Serving& device = **device_;
  // Layer 0 lies in the first region, layer 1 in the second.
  client::DeviceRegion regions[2] = {memory.Region(device.device_uuid),
                                     memory.Region(device.device_uuid)};
  const int64_t cut = layout.k.base + layout.layer_stride;
  regions[0].size_bytes = cut;
  regions[1].offset_bytes += cut;
  regions[1].size_bytes -= cut;
  v1::Pool described = DescriptionOf(layout, device.model);
  for (v1::KvView* view :
       {described.mutable_layers(1)->mutable_k(), described.mutable_layers(1)->mutable_v()}) {
    view->set_region(1);
    view->set_base_offset(view->base_offset() - cut);
  }
  const auto pool = client::DevicePool::Register(*device.client, described, regions);
  ASSERT_TRUE(pool.ok()) << pool.status();
  const faults::Image before = Before(layout);
  memory.Restore(before);
  const Request request = RequestOf({pool->Name(), device.model}, Ways()[0], layout);
  const auto result = faults::CompressOne(*device.client, request);
  ASSERT_TRUE(result.ok()) << result.status();
  const v1::PagedSource& paged = request.sequences(0).paged();
  EXPECT_EQ(faults::Difference(
                memory.Now(),
                faults::Moved(layout, before, {paged.block_ids().begin(), paged.block_ids().end()},
                              faults::TableOf(*result), faults::KeptOf(*result))),
            "");
}

}  // namespace
}  // namespace kvern::device
