// A server whose store lies on the device answers every call of the store with the bytes that one
// with a store in host memory does.
#include "client/cpp/upload.h"
#include "gmock/gmock.h"
#include "tests/integration/device/device_memory.h"
#include "tests/integration/equality/wire_sequence.h"

namespace kvern::device {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kTokens = 700;
constexpr int64_t kStoreBytes = int64_t{32} << 20;

std::vector<std::string> Flags(const std::string& store_memory) {
  std::vector<std::string> flags = OnDevice();
  flags.insert(flags.end(), {"--store-bytes", "32MiB", "--store-memory", store_memory});
  return flags;
}

// What a client sees of a sequence that is put, appended to, compressed and packed.
struct Seen {
  std::vector<std::string> bytes;
  bool said_on_device = false;
  int64_t used_bytes = 0, capacity_bytes = 0, reserved_bytes = 0;
};

class Customer {
 public:
  explicit Customer(const Serving& serving) : serving_(serving), client_(*serving.client) {}

  Seen Run() {
    Put();
    Fetch(client::FetchForm::kAsStored);
    Append();
    Fetch(client::FetchForm::kAsStored);
    Compress(400, "raw16");
    Fetch(client::FetchForm::kAsStored);
    Compress(250, "lm4+rm");
    Fetch(client::FetchForm::kAsStored);
    Fetch(client::FetchForm::kDecoded);
    seen_.used_bytes = serving_.Metric("kvern_store_bytes");
    const auto info = client_.GetServerInfo();
    EXPECT_TRUE(info.ok());
    seen_.said_on_device = info->backend_reason() == "store in memory of the device";
    seen_.capacity_bytes =
        serving_.Metric("kvern_store_capacity_bytes", seen_.said_on_device ? "device" : "host");
    seen_.reserved_bytes = info->device().reserved_bytes();
    EXPECT_TRUE(client_.DeleteSequence(kName).ok());
    EXPECT_EQ(serving_.Metric("kvern_store_bytes"), 0);
    return seen_;
  }

 private:
  static constexpr char kName[] = "sequences/s";

  void Put() {
    v1::StoredSequence header;
    header.set_name(kName);
    header.set_model(serving_.model);
    header.set_dtype(v1::DTYPE_BF16);
    header.set_num_tokens(kTokens);
    const auto put =
        client::PutSequence(client_, header, equality::RandomCache(kTokens, 1).View(), nullptr);
    EXPECT_TRUE(put.ok()) << put.status();
  }
  void Append() {
    v1::AppendHeader header;
    header.set_name(kName);
    header.set_num_tokens(33);
    const auto appended =
        client::AppendSequence(client_, header, equality::RandomCache(33, 7).View(), nullptr);
    EXPECT_TRUE(appended.ok()) << appended.status();
    epoch_ = appended.ok() ? appended->epoch() : 0;
  }
  void Compress(int64_t budget, const std::string& codec) {
    v1::CompressCacheRequest request;
    request.set_model(serving_.model);
    v1::Policy* policy = request.mutable_policy();
    policy->mutable_budget()->set_tokens(budget);
    policy->add_scorers()->set_name("key_norm");
    policy->set_placement(v1::PLACEMENT_TO_STORE);
    policy->mutable_codecs()->set_k(codec);
    policy->mutable_codecs()->set_v(codec == "raw16" ? "raw16" : "i8t");
    v1::SequenceRequest* sequence = request.add_sequences();
    sequence->set_sequence_id("s");
    sequence->set_epoch(epoch_);
    sequence->mutable_stored()->set_sequence(kName);
    const auto result = faults::CompressOne(client_, request);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->outcome(), v1::OUTCOME_APPLIED) << result->DebugString();
    EXPECT_EQ(result->epoch(), epoch_ + 1);
    epoch_ = result->epoch();
  }
  void Fetch(client::FetchForm form) {
    const auto fetched = client::FetchSequence(client_, kName, form, nullptr);
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    for (const std::string& part :
         {fetched->k, fetched->v, fetched->packed, fetched->header.packed_table(),
          fetched->header.mean_key(), fetched->header.sequence().SerializeAsString()}) {
      seen_.bytes.push_back(part);
    }
  }

  const Serving& serving_;
  const client::Client& client_;
  Seen seen_;
  uint64_t epoch_ = 0;
};

TEST(StoreMemory, OfTheDeviceGivesTheBytesOfHostMemory) {
  std::vector<Seen> seen;
  for (const char* place : {"host", "device", "auto"}) {
    SCOPED_TRACE(place);
    auto serving = Serving::Start(Flags(place), equality::kHeadDim);
    ASSERT_TRUE(serving) << "kvernd did not start";
    const bool on_device = place != std::string("host");
    EXPECT_EQ(serving->process->Log().find("in memory of the device") != std::string::npos,
              on_device)
        << serving->process->Log();
    seen.push_back(Customer(*serving).Run());
    EXPECT_EQ(seen.back().said_on_device, on_device);
    EXPECT_EQ(seen.back().bytes, seen[0].bytes);
    EXPECT_EQ(seen.back().used_bytes, seen[0].used_bytes);
    EXPECT_EQ(seen.back().capacity_bytes, kStoreBytes);
    EXPECT_EQ(seen.back().reserved_bytes - seen[0].reserved_bytes, on_device ? kStoreBytes : 0);
  }
}

TEST(StoreMemory, IsRefusedAtStartWhereItCannotBeHad) {
  const std::string kvernd = support::BinaryPath("kvernd");
  const std::string listen = "unix:" + testing::TempDir() + "/refused.sock";
  const auto run = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {kvernd, "--listen", listen, "--metrics-listen", ""});
    return support::RunCommand(flags);
  };
  const auto host = run({"--backend", "cpu", "--store-memory", "device"});
  EXPECT_NE(host.exit_code, 0);
  EXPECT_THAT(host.err, HasSubstr("--store-memory"));
  const auto large = run({"--backend", "cuda", "--store-bytes", "8GiB"});
  EXPECT_NE(large.exit_code, 0);
  EXPECT_THAT(large.err, HasSubstr("--store-memory host"));
  EXPECT_TRUE(Serving::Start({"--backend", "cuda", "--store-bytes", "8GiB", "--store-memory",
                              "host", "--scratch-bytes", "64MiB"},
                             equality::kHeadDim));
}

}  // namespace
}  // namespace kvern::device
