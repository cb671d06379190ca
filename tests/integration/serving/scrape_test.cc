// The page that Prometheus reads: well formed, complete from the start, and true.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "client/cpp/client.h"
#include "tests/integration/hostile/test_pool.h"
#include "tests/integration/serving/running_call.h"
#include "tests/support/server_process.h"

namespace kvern::serving {
namespace {

using hostile::InlineRequest;
using hostile::PagedRequest;
using hostile::TestPool;

constexpr int64_t kTokens = 200;

// What the official parser understood, a sample a line, labels sorted.
constexpr char kParser[] = R"(
import sys
from prometheus_client.parser import text_string_to_metric_families
for family in text_string_to_metric_families(open(sys.argv[1]).read()):
    assert family.documentation and family.type != 'unknown', family.name
    print('#', family.type, family.name)
    for sample in family.samples:
        labels = ','.join('%s=%s' % label for label in sorted(sample.labels.items()))
        print('%s{%s} %r' % (sample.name, labels, sample.value))
)";

struct Page {
  std::set<std::string> families;         // "counter kvern_replays"
  std::map<std::string, double> samples;  // by `name{label=value,...}`
};

std::string WritePage(const std::string& text) {
  const std::string path = testing::TempDir() + "/scrape-" + std::to_string(getpid());
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

Page Parsed(const support::ServerProcess& server) {
  const std::string path = WritePage(server.Scrape());
  const auto output = support::RunCommand({"/usr/bin/python3", "-c", kParser, path});
  EXPECT_EQ(output.exit_code, 0) << output.err;
  Page page;
  std::istringstream lines(output.out);
  for (std::string line; std::getline(lines, line);) {
    if (line.substr(0, 2) == "# ") {
      EXPECT_TRUE(page.families.insert(line.substr(2)).second) << line << " twice";
      continue;
    }
    const size_t end = line.rfind(' ');
    const bool fresh =
        page.samples.emplace(line.substr(0, end), std::atof(line.c_str() + end + 1)).second;
    EXPECT_TRUE(fresh) << line << " twice";
  }
  return page;
}

std::vector<std::string> SeriesOf(const Page& page) {
  std::vector<std::string> series;
  for (const auto& [name, value] : page.samples) series.push_back(name);
  return series;
}

class Scrape : public testing::Test {
 protected:
  void SetUp() override {
    server_ = support::ServerProcess::Start({"--threads", "2", "--store-bytes", "8MiB"});
    ASSERT_NE(server_, nullptr);
    auto client = client::Client::Connect(server_->Address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<client::Client>(*client);
  }
  void RegisterModelAndPool() {
    ASSERT_TRUE(client_->RegisterModel(hostile::TestModel()).ok());
    auto pool = TestPool::Register(*client_, *server_, "scraped", /*blocks=*/40);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }

  std::unique_ptr<support::ServerProcess> server_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<TestPool> pool_;
};

TEST_F(Scrape, HasEveryFamilyBeforeTheFirstCall) {
  const Page page = Parsed(*server_);
  // Counters without their suffix, as the parser names families.
  const std::map<std::string, std::vector<std::string>> want = {
      {"counter",
       {"rpc_requests", "sequences", "tokens", "blocks_freed", "freed_bytes", "moved_bytes",
        "rejected", "pool_events", "replays", "replay_evictions", "epoch_conflicts", "plan_events",
        "poisoned_sequences", "store_evictions"}},
      {"histogram",
       {"rpc_duration_seconds", "stage_duration_seconds", "keep_ratio", "estimated_loss_ratio"}},
      {"gauge",
       {"rpc_in_flight", "build_info", "queue_depth", "queue_oldest_seconds", "queued_bytes",
        "pools", "pool_mapped_bytes", "store_sequences", "store_bytes", "store_capacity_bytes",
        "attachments", "remembered_sequences", "observed_bytes", "plans", "plan_bytes", "limit"}}};
  size_t families = 0;
  for (const auto& [type, names] : want) {
    for (const std::string& name : names) {
      EXPECT_EQ(page.families.count(type + " kvern_" + name), 1u) << type << " " << name;
      ++families;
    }
  }
  for (const std::string& family : page.families) {
    families -= family.find(" kvern_") != std::string::npos ? 1 : 0;
  }
  EXPECT_EQ(families, 0u) << "families that this list does not know";
}

TEST_F(Scrape, PassesPromtool) {
  RegisterModelAndPool();
  ASSERT_TRUE(client_->Compress(InlineRequest(kTokens)).ok());
  const std::string path = WritePage(server_->Scrape());
  const auto output =
      support::RunCommand({"/bin/sh", "-c", "promtool check metrics < \"$1\"", "sh", path});
  EXPECT_EQ(output.exit_code, 0);
  EXPECT_EQ(output.out + output.err, "");
}

// Every RPC, good and bad, with stages, presets and outcomes of all kinds.
void MixedWorkload(const client::Client& client, const std::string& pool) {
  for (const char* scorer : {"keydiff", "key_norm", "value_norm", "random", "snapkv", "none"}) {
    for (const char* selector : {"topk", "diverse", "sink_recent"}) {
      v1::CompressCacheRequest request = InlineRequest(kTokens);
      request.mutable_policy()->mutable_scorers(0)->set_name(scorer);
      request.mutable_policy()->mutable_selector()->set_name(selector);
      EXPECT_TRUE(client.Compress(request).ok());
    }
  }
  for (const char* preset : {"balanced", "safe", "evict50", "no such preset"}) {
    v1::CompressCacheRequest request = InlineRequest(kTokens);
    request.mutable_policy()->Clear();
    request.mutable_policy()->set_preset(preset);
    EXPECT_TRUE(client.Compress(request).ok());
  }
  v1::CompressCacheRequest paged = PagedRequest(pool, kTokens);
  paged.set_request_id("twice");
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(client.Compress(paged).ok());
  paged.set_request_id("stale");
  EXPECT_TRUE(client.Compress(paged).ok());
  paged.set_model("models/none");
  EXPECT_FALSE(client.Compress(paged).ok());
  EXPECT_TRUE(client.ListPools().ok() && client.ListModels().ok() && client.ListStages().ok());
  EXPECT_TRUE(client.ListSequences().ok() && client.ReleaseSequences({"base"}).ok());
  EXPECT_FALSE(client.GetSequence("sequences/none").ok());
  EXPECT_FALSE(client.GetModel("\x01\"\n").ok());
  EXPECT_FALSE(client.RegisterPool(v1::Pool()).ok());
}

TEST_F(Scrape, HasTheSameSeriesWhateverHappens) {
  const std::vector<std::string> before = SeriesOf(Parsed(*server_));
  RegisterModelAndPool();
  MixedWorkload(*client_, pool_->Name());
  const std::vector<std::string> after = SeriesOf(Parsed(*server_));
  EXPECT_EQ(before, after);
  EXPECT_EQ(SeriesOf(Parsed(*server_)), after);
}

TEST_F(Scrape, CountersMoveAsOneCompressionSays) {
  RegisterModelAndPool();
  const Page before = Parsed(*server_);
  const auto response = client_->Compress(PagedRequest(pool_->Name(), kTokens));
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_TRUE(client::SequenceStatus(response->results(0)).ok());
  // What the call held is given back right after its answer.
  EXPECT_TRUE(AwaitMetric(*server_, "kvern_queued_bytes 0"));
  const Page after = Parsed(*server_);
  const auto moved = [&](const std::string& series) {
    EXPECT_TRUE(before.samples.count(series)) << series;
    return after.samples.at(series) - before.samples.at(series);
  };
  EXPECT_EQ(moved("kvern_rpc_requests_total{code=ok,rpc=CompressCache}"), 1);
  EXPECT_EQ(moved("kvern_rpc_requests_total{code=invalid_argument,rpc=CompressCache}"), 0);
  EXPECT_EQ(moved("kvern_rpc_duration_seconds_count{rpc=CompressCache}"), 1);
  EXPECT_EQ(after.samples.at("kvern_rpc_in_flight{rpc=CompressCache}"), 0);
  EXPECT_EQ(moved("kvern_sequences_total{outcome=applied,policy=custom,reason=}"), 1);
  EXPECT_EQ(moved("kvern_tokens_total{policy=custom,state=in}"), kTokens);
  EXPECT_EQ(moved("kvern_tokens_total{policy=custom,state=kept}"), kTokens / 2);
  EXPECT_EQ(moved("kvern_tokens_total{policy=custom,state=dropped}"), kTokens / 2);
  EXPECT_EQ(moved("kvern_keep_ratio_count{policy=custom}"), 1);
  EXPECT_EQ(moved("kvern_keep_ratio_sum{policy=custom}"), 0.5);
  const v1::SequenceResult& result = response->results(0);
  EXPECT_EQ(moved("kvern_blocks_freed_total{engine=vllm,policy=custom}"),
            result.freed_block_ids_size());
  EXPECT_EQ(moved("kvern_freed_bytes_total{engine=vllm,policy=custom}"),
            result.bytes_before() - result.bytes_after());
  EXPECT_EQ(moved("kvern_moved_bytes_total{direction=paged}"), result.bytes_after());
  EXPECT_EQ(moved("kvern_stage_duration_seconds_count{name=keydiff,stage=score}"), 1);
  EXPECT_EQ(moved("kvern_stage_duration_seconds_count{name=topk,stage=select}"), 1);
  EXPECT_EQ(after.samples.at("kvern_pools{engine=vllm,kind=memfd}"), 1);
  EXPECT_EQ(after.samples.at("kvern_remembered_sequences{}"), 1);
  EXPECT_EQ(after.samples.at("kvern_queue_depth{}"), 0);
  EXPECT_EQ(after.samples.at("kvern_queued_bytes{}"), 0);
}

}  // namespace
}  // namespace kvern::serving
