// Calibration learned from live queries: counted over the wire, used by policies, exported, loaded.
#include "client/cpp/observe.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <list>

#include "client/cpp/upload.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/integration/hostile/test_pool.h"
#include "tests/support/server_process.h"

namespace kvern {
namespace {

using hostile::kHeadDim;
using hostile::kLayers;
using hostile::kQHeads;

constexpr int64_t kTokens = 200;
constexpr int64_t kConfident = 4 * kHeadDim;

class Observe : public testing::Test {
 protected:
  void SetUp() override { Start({}); }

  void Start(const std::vector<std::string>& flags) {
    server_ = support::ServerProcess::Start(flags);
    ASSERT_NE(server_, nullptr);
    auto client = client::Client::Connect(server_->Address());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = std::make_unique<client::Client>(*std::move(client));
    ASSERT_TRUE(client_->RegisterModel(hostile::TestModel()).ok());
  }

  // Queries of `tokens` positions; `bytes_` keeps what they borrow.
  client::QueriesToObserve Queries(int64_t tokens, uint32_t seed) {
    client::QueriesToObserve queries;
    queries.model = hostile::TestModel().name();
    queries.form = v1::QUERY_FORM_AFTER_ROPE;
    for (int32_t position = 0; position < tokens; ++position) {
      queries.positions.push_back(3 * position);
    }
    queries.layers = kLayers;
    queries.q_heads = kQHeads;
    queries.tokens = tokens;
    queries.head_dim = kHeadDim;
    bytes_.push_back(hostile::RandomBf16(kLayers * kQHeads * tokens * kHeadDim, seed));
    queries.queries = std::as_bytes(std::span(bytes_.back()));
    return queries;
  }

  // The answer but for times and remarks, under a scorer that reads calibrations.
  static std::string Compress(const client::Client& client, const std::string& scorer,
                              const std::vector<std::string>& calibrations,
                              v1::SequenceResult* full = nullptr) {
    v1::CompressCacheRequest request = hostile::InlineRequest(kTokens);
    request.mutable_policy()->mutable_scorers(0)->set_name(scorer);
    request.mutable_policy()->mutable_calibrations()->Assign(calibrations.begin(),
                                                             calibrations.end());
    for (const char* path : {"kept", "scores"}) request.mutable_response_mask()->add_paths(path);
    const auto response = client.Compress(request);
    EXPECT_TRUE(response.ok()) << response.status();
    if (!response.ok()) return "";
    v1::SequenceResult result = response->results(0);
    if (full != nullptr) *full = result;
    result.clear_timings();
    result.clear_warnings();
    return result.SerializeAsString();
  }

  std::unique_ptr<support::ServerProcess> server_;
  std::unique_ptr<client::Client> client_;
  std::list<std::string> bytes_;
};

TEST_F(Observe, ServesPoliciesAndTheExportedFileServesThemAlike) {
  const auto counted = client::ObserveQueries(*client_, Queries(kConfident, 1));
  ASSERT_TRUE(counted.ok()) << counted.status();
  EXPECT_EQ(counted->counted_tokens(), kConfident);
  EXPECT_TRUE(counted->observed().confident());
  const auto described = client_->DescribeModel(hostile::TestModel().name());
  ASSERT_TRUE(described.ok()) << described.status();
  EXPECT_THAT(described->observed().layer_tokens(), testing::ElementsAre(kConfident, kConfident));
  EXPECT_EQ(described->observed().mean_error_size(), kLayers * kQHeads);
  EXPECT_THAT(described->observed().mean_error(), testing::Each(testing::Lt(0.2f)));

  const std::pair<const char*, const char*> kinds[] = {
      {"triattention", "kvern-calibration/1"}, {"expected_attention", "kvern-query-moments/1"}};
  for (const auto& [scorer, format] : kinds) {
    SCOPED_TRACE(scorer);
    v1::SequenceResult unnamed;
    const std::string observed = Compress(*client_, scorer, {}, &unnamed);
    EXPECT_THAT(unnamed.warnings(), testing::Contains(testing::HasSubstr("observed at 128")));
    EXPECT_TRUE(Compress(*client_, scorer, {"calibrations/observed"}) == observed);
    const auto file = client::ExportCalibration(*client_, hostile::TestModel().name(), format);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto name = client::ImportCalibration(*client_, std::as_bytes(std::span(*file)), nullptr);
    ASSERT_TRUE(name.ok()) << name.status();
    EXPECT_TRUE(Compress(*client_, scorer, {*name}) == observed);
  }
}

TEST_F(Observe, IsNotThereForWhatAsksTooEarly) {
  v1::CompressCacheRequest request = hostile::InlineRequest(kTokens);
  request.mutable_policy()->mutable_scorers(0)->set_name("triattention");
  const auto refused = client_->Compress(request);
  ASSERT_TRUE(refused.ok()) << refused.status();
  EXPECT_EQ(ReasonOf(client::SequenceStatus(refused->results(0))), "INPUT_MISSING");
  ASSERT_TRUE(client::ObserveQueries(*client_, Queries(kConfident - 1, 1)).ok());
  request.mutable_policy()->add_calibrations("calibrations/observed");
  const auto early = client_->Compress(request);
  ASSERT_TRUE(early.ok()) << early.status();
  EXPECT_EQ(ReasonOf(client::SequenceStatus(early->results(0))), "OBSERVED_TOO_FEW");
  ASSERT_TRUE(client::ObserveQueries(*client_, Queries(1, 2)).ok());
  EXPECT_TRUE(client::SequenceStatus(client_->Compress(request)->results(0)).ok());
}

TEST_F(Observe, IsTheSameForTheSameQueriesInTheSameOrder) {
  std::vector<std::string> files;
  for (int run = 0; run < 2; ++run) {
    if (run == 1) Start({"--threads", "1"});
    ASSERT_TRUE(client::ObserveQueries(*client_, Queries(90, 1)).ok());
    ASSERT_TRUE(client::ObserveQueries(*client_, Queries(70, 2)).ok());
    files.push_back(
        *client::ExportCalibration(*client_, hostile::TestModel().name(), "kvern-query-moments/1"));
  }
  EXPECT_TRUE(files[0] == files[1]);
}

TEST_F(Observe, CountsAResumedStreamOnce) {
  client::QueriesToObserve queries = Queries(40, 1);
  queries.request_id = "stream-1";
  const auto first = client::ObserveQueries(*client_, queries);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->counted_tokens(), 40);
  const auto again = client::ObserveQueries(*client_, queries);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->counted_tokens(), 0);
  EXPECT_EQ(again->replayed_tokens(), 40);
  EXPECT_THAT(again->observed().layer_tokens(), testing::Each(40));
  // Other queries in their place are no continuation.
  client::QueriesToObserve other = Queries(40, 2);
  other.request_id = "stream-1";
  const absl::Status refused = client::ObserveQueries(*client_, other).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << refused;
  EXPECT_EQ(FieldOf(refused), "request_id");
  const auto described = client_->DescribeModel(queries.model);
  EXPECT_THAT(described->observed().layer_tokens(), testing::Each(40));
  // What was counted is gone with the model.
  ASSERT_TRUE(client_->DeleteModel(queries.model).ok());
  ASSERT_TRUE(client_->RegisterModel(hostile::TestModel()).ok());
  const auto anew = client::ObserveQueries(*client_, queries);
  ASSERT_TRUE(anew.ok()) << anew.status();
  EXPECT_EQ(anew->counted_tokens(), 40);
}

TEST_F(Observe, GoesOnWhereAStreamBrokeOff) {
  constexpr int64_t kMessage = 8192;  // as many tokens as 4 MiB hold
  constexpr int64_t kAll = kMessage + 1808;
  client::QueriesToObserve all = Queries(kAll, 3);
  all.request_id = "stream-2";
  std::string first;
  for (int64_t row = 0; row < kLayers * kQHeads; ++row) {
    constexpr int64_t kTokenBytes = kHeadDim * hostile::kElementBytes;
    first += bytes_.back().substr(row * kAll * kTokenBytes, kMessage * kTokenBytes);
  }
  client::QueriesToObserve broken = all;
  broken.tokens = kMessage;
  broken.positions.resize(kMessage);
  broken.queries = std::as_bytes(std::span(first));
  ASSERT_TRUE(client::ObserveQueries(*client_, broken).ok());
  const auto rest = client::ObserveQueries(*client_, all);
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_EQ(rest->replayed_tokens(), kMessage);
  EXPECT_EQ(rest->counted_tokens(), kAll - kMessage);
  // A stream that ends before all that was counted under its id is another one.
  const absl::Status shorter = client::ObserveQueries(*client_, broken).status();
  EXPECT_EQ(shorter.code(), absl::StatusCode::kInvalidArgument) << shorter;
  EXPECT_EQ(FieldOf(shorter), "request_id");
  const std::string in_two = *client::ExportCalibration(*client_, all.model, "kvern-calibration/1");
  Start({});
  ASSERT_TRUE(client::ObserveQueries(*client_, all).ok());
  EXPECT_TRUE(*client::ExportCalibration(*client_, all.model, "kvern-calibration/1") == in_two);
}

TEST_F(Observe, IsLoadedByTheNextServerFromItsFiles) {
  ASSERT_TRUE(client::ObserveQueries(*client_, Queries(kConfident, 1)).ok());
  const std::string before = Compress(*client_, "expected_attention", {});
  std::string directory = testing::TempDir() + "/kvern-observed-XXXXXX";
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  for (const char* kind : {"calibration", "query-moments"}) {
    const auto file = client::ExportCalibration(*client_, hostile::TestModel().name(),
                                                std::string("kvern-") + kind + "/1");
    ASSERT_TRUE(file.ok()) << file.status();
    std::ofstream(directory + "/" + kind + ".safetensors", std::ios::binary) << *file;
  }
  Start({"--models", directory});
  const auto models = client_->ListModels();
  ASSERT_TRUE(models.ok()) << models.status();
  std::string loaded;
  for (const v1::Model& model : models->models()) {
    if (model.calibrations_size() == 2) loaded = model.name();
  }
  ASSERT_FALSE(loaded.empty());
  EXPECT_TRUE(Compress(*client_, "expected_attention",
                       {models->calibrations(0).name(), models->calibrations(1).name()}) == before);
  for (const char* kind : {"calibration", "query-moments"}) {
    std::remove((directory + "/" + kind + ".safetensors").c_str());
  }
  rmdir(directory.c_str());
}

TEST_F(Observe, TellsItsBytesToPrometheus) {
  EXPECT_THAT(server_->Scrape(), testing::HasSubstr("kvern_observed_bytes 0\n"));
  ASSERT_TRUE(client::ObserveQueries(*client_, Queries(1, 1)).ok());
  EXPECT_THAT(server_->Scrape(), testing::Not(testing::HasSubstr("kvern_observed_bytes 0\n")));
  ASSERT_TRUE(client_->DeleteModel(hostile::TestModel().name()).ok());
  EXPECT_THAT(server_->Scrape(), testing::HasSubstr("kvern_observed_bytes 0\n"));
}

}  // namespace
}  // namespace kvern
