// Every limit of the table, gone ten times beyond where that can be sent: the documented code, and
// service as before.
#include "server/memory/limits.h"

#include <atomic>
#include <thread>

#include "client/cpp/status_details.h"
#include "client/cpp/upload.h"
#include "kvern/v1/server.pb.h"
#include "kvern/v1/store.grpc.pb.h"
#include "tests/integration/hostile/eventually.h"
#include "tests/integration/hostile/hostile_server.h"
#include "tests/integration/hostile/raw_call.h"

namespace kvern::hostile {
namespace {

using Request = v1::CompressCacheRequest;
using absl::StatusCode;

// Small enough that ten times them is still a small message.
const std::vector<std::pair<std::string, int64_t>>& SmallLimits() {
  static const auto* const limits =
      new std::vector<std::pair<std::string, int64_t>>{{"inline-bytes", 128 << 10},
                                                       {"pools-per-peer", 3},
                                                       {"regions-per-pool", 2},
                                                       {"sequences", 4},
                                                       {"layers", 4},
                                                       {"kv-heads", 4},
                                                       {"head-dim", 64},
                                                       {"block-tokens", 16},
                                                       {"tokens-per-sequence", 300},
                                                       {"blocks-per-table", 30},
                                                       {"sequences-per-call", 4},
                                                       {"queued-calls", 2},
                                                       {"queued-bytes", 400 << 10},
                                                       {"idle-stream-seconds", 1},
                                                       {"calibration-bytes", 8192},
                                                       {"max-response-bytes", 96 << 10},
                                                       {"replay-answers", 2},
                                                       {"default-deadline-seconds", 20},
                                                       {"metadata-bytes", 4096},
                                                       {"drain-seconds", 3},
                                                       {"replay-bytes", 64 << 10},
                                                       {"replay-seconds", 1},
                                                       {"store-bytes", 224 << 10}};
  return *limits;
}

class SmallLimit : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    std::vector<std::string> flags;
    for (const auto& [flag, value] : SmallLimits()) {
      flags.insert(flags.end(), {"--" + flag, std::to_string(value)});
    }
    auto server = HostileServer::Start(flags);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override { ASSERT_NE(server_, nullptr); }
  void TearDown() override { server_->ExpectUnharmed(); }

  static absl::Status Register(const std::function<void(v1::ModelSpec*)>& spoil) {
    v1::Model model = TestModel();
    model.clear_name();
    spoil(model.mutable_spec());
    return server_->Client().RegisterModel(model).status();
  }
  static void ExpectExhausted(const absl::Status& status, const std::string& reason) {
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(ReasonOf(status), reason) << status;
    EXPECT_TRUE(client::RetryDelayOf(status).has_value()) << status;
  }
  static void ExpectNeverFits(const absl::Status& status, const std::string& reason) {
    EXPECT_EQ(status.code(), StatusCode::kResourceExhausted) << status;
    EXPECT_EQ(ReasonOf(status), reason) << status;
    EXPECT_FALSE(client::RetryDelayOf(status).has_value()) << status;
  }
  static absl::Status Put(const std::string& id, int64_t tokens) {
    v1::StoredSequence header;
    header.set_name("sequences/" + id);
    header.set_model(TestModel().name());
    header.set_dtype(v1::DTYPE_BF16);
    header.set_num_tokens(tokens);
    const std::string bytes(int64_t{kLayers} * kKvHeads * kHeadDim * tokens * kElementBytes, 'x');
    const auto span = std::as_bytes(std::span(bytes));
    return client::PutSequence(server_->Client(), header, {span, span, tokens}, nullptr).status();
  }

  static inline HostileServer* server_ = nullptr;
};

TEST_F(SmallLimit, OfEachFlagIsAGaugeAndAFactOfTheServer) {
  const auto info = server_->Client().GetServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  const std::string page = server_->Process().Scrape();
  EXPECT_EQ(info->limits_size(), static_cast<int>(LimitFields().size()));
  for (const LimitField& field : LimitFields()) {
    ASSERT_TRUE(info->limits().contains(field.flag)) << field.flag;
    EXPECT_THAT(page, testing::HasSubstr("kvern_limit{limit=\"" + std::string(field.flag) + "\"} " +
                                         std::to_string(info->limits().at(field.flag))));
  }
  for (const auto& [flag, value] : SmallLimits()) EXPECT_EQ(info->limits().at(flag), value) << flag;
}

TEST_F(SmallLimit, OfGeometryIsAnInvalidArgument) {
  ExpectRefused(Register([](auto* spec) { spec->set_num_layers(40); }), {"model.spec.num_layers"});
  ExpectRefused(Register([](auto* spec) {
                  spec->set_kv_heads(40);
                  spec->set_q_heads(40);
                }),
                {"model.spec.kv_heads"});
  ExpectRefused(Register([](auto* spec) { spec->set_head_dim(640); }), {"model.spec.head_dim"});
  v1::Pool pool = TestPool::Describe(server_->Pool().Attachment(), kPoolBlocks);
  pool.set_block_tokens(160);
  ExpectRefused(server_->Client().RegisterPool(pool).status(), {"pool.block_tokens"});
  pool.set_block_tokens(kBlockTokens);
  while (pool.regions_size() < 20) *pool.add_regions() = pool.regions(0);
  ExpectRefused(server_->Client().RegisterPool(pool).status(), {"pool.regions"});
}

TEST_F(SmallLimit, OfOneCallIsAnInvalidArgument) {
  Request tokens = server_->Paged();
  tokens.mutable_sequences(0)->mutable_paged()->set_num_tokens(3000);
  ExpectRefused(server_->Compress(tokens), {"sequences[0].paged.num_tokens"});
  Request table = server_->Paged();
  while (table.sequences(0).paged().block_ids_size() < 300) {
    table.mutable_sequences(0)->mutable_paged()->add_block_ids(1);
  }
  ExpectRefused(server_->Compress(table), {"sequences[0].paged.block_ids"});
  Request cohort = server_->Paged();
  for (int i = 0; i < 39; ++i) {
    *cohort.add_sequences() = cohort.sequences(0);
    cohort.mutable_sequences(i + 1)->set_sequence_id(std::to_string(i));
  }
  ExpectRefused(server_->Compress(cohort), {"sequences"});
  Request bytes = InlineRequest(10 * 256);  // 256 tokens are 128 KiB
  bytes.mutable_policy()->mutable_budget()->set_tokens(100);
  ExpectRefused(server_->Compress(bytes), {"sequences"});
}

TEST_F(SmallLimit, OfInlineBytesCountsTheWholeCohort) {
  Request request = InlineRequest(kTokens);  // 100 KiB
  EXPECT_TRUE(server_->Compress(request).ok()) << server_->Compress(request);
  *request.add_sequences() = request.sequences(0);
  request.mutable_sequences(1)->set_sequence_id("second");
  ExpectRefused(server_->Compress(request), {"sequences"});
}

TEST_F(SmallLimit, OfMetadataIsResourceExhausted) {
  const std::string method = "/kvern.v1.ServerService/GetServerInfo";
  const auto& channel = server_->Client().Channel();
  EXPECT_TRUE(RawCall(channel, method, "", 1024).status.ok());
  EXPECT_EQ(RawCall(channel, method, "", 40 << 10).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(SmallLimit, OfAMessageIsResourceExhausted) {
  const std::string method = "/kvern.v1.CompressionService/CompressCache";
  EXPECT_EQ(
      RawCall(server_->Client().Channel(), method, std::string(12 << 20, 'x')).status.error_code(),
      grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(SmallLimit, OfPoolsPerPeerIsResourceExhausted) {
  v1::Pool pool = TestPool::Describe(server_->Pool().Attachment(), kPoolBlocks);
  std::vector<std::string> names;
  for (int i = 0; i < 2; ++i) {  // beside the victim
    const auto registered = server_->Client().RegisterPool(pool);
    ASSERT_TRUE(registered.ok()) << registered.status();
    names.push_back(registered->pool().name());
  }
  for (int i = 0; i < 30; ++i) {
    ExpectExhausted(server_->Client().RegisterPool(pool).status(), "");
  }
  for (const std::string& name : names) {
    ASSERT_TRUE(server_->Client().UnregisterPool(name).ok());
  }
}

TEST_F(SmallLimit, OfStoredSequencesIsResourceExhausted) {
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Put(std::to_string(i), 1).ok());
  for (int i = 4; i < 40; ++i) ExpectExhausted(Put(std::to_string(i), 1), "");
  // What is released makes room.
  ASSERT_TRUE(server_->Client().ReleaseSequences({"0"}).ok());
  EXPECT_TRUE(Put("4", 1).ok());
  for (int i = 1; i < 5; ++i) {
    ASSERT_TRUE(server_->Client().DeleteSequence("sequences/" + std::to_string(i)).ok());
  }
}

TEST_F(SmallLimit, OfRememberedSequencesForgetsTheOldest) {
  Request request = server_->Paged();
  request.mutable_policy()->set_placement(v1::PLACEMENT_INDICES_ONLY);
  for (int i = 0; i < 40; ++i) {
    request.mutable_sequences(0)->set_sequence_id(std::to_string(i));
    request.mutable_sequences(0)->set_epoch(3);
    ASSERT_TRUE(server_->Compress(request).ok());
  }
  EXPECT_THAT(server_->Process().Scrape(), testing::HasSubstr("kvern_remembered_sequences 4\n"));
  request.mutable_sequences(0)->set_epoch(2);
  ExpectRefused(server_->Compress(request), {"", StatusCode::kAborted, "EPOCH_MISMATCH"});
  request.mutable_sequences(0)->set_sequence_id("0");
  EXPECT_TRUE(server_->Compress(request).ok());
}

TEST_F(SmallLimit, OfTheResponseIsResourceExhaustedBeforeBytesMove) {
  Request request = server_->Paged();
  request.set_validate_only(true);
  for (const char* path : {"kept", "positions", "scores"}) {
    request.mutable_response_mask()->add_paths(path);
  }
  EXPECT_TRUE(server_->Compress(request).ok());
  Request large = InlineRequest(250);
  large.mutable_policy()->mutable_budget()->set_tokens(249);
  ExpectNeverFits(server_->Compress(large), "RESPONSE_TOO_LARGE");
}

TEST_F(SmallLimit, OfCalibrationBytesIsResourceExhausted) {
  const std::string bytes(80 << 10, 'c');
  const auto imported =
      client::ImportCalibration(server_->Client(), std::as_bytes(std::span(bytes)), nullptr);
  ExpectNeverFits(imported.status(), "");
  EXPECT_EQ(server_->Client().ListModels()->calibrations_size(), 0);
}

TEST_F(SmallLimit, OfAnIdleStreamIsDeadlineExceeded) {
  const auto stub = v1::StoreService::NewStub(server_->Client().Channel());
  grpc::ClientContext context;
  server_->Client().Prepare(&context);
  v1::PutSequenceResponse response;
  const auto writer = stub->PutSequence(&context, &response);
  v1::PutSequenceRequest header;
  header.mutable_header()->set_name("sequences/idle");
  header.mutable_header()->set_model(TestModel().name());
  header.mutable_header()->set_dtype(v1::DTYPE_BF16);
  header.mutable_header()->set_num_tokens(1);
  EXPECT_TRUE(writer->Write(header));
  const absl::Status status = client::FromGrpc(writer->Finish());  // without WritesDone
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ(ReasonOf(status), "STREAM_IDLE") << status;
  EXPECT_EQ(server_->Client().ListSequences()->sequences_size(), 0);
}

TEST_F(SmallLimit, OfReplayedAnswersDropsTheOldestAndCountsIt) {
  Request request = server_->Paged();
  request.mutable_policy()->set_placement(v1::PLACEMENT_INDICES_ONLY);
  const auto replayed = [&](int id) {
    request.set_request_id(std::to_string(id));
    request.mutable_sequences(0)->set_sequence_id(std::to_string(id));
    const auto response = server_->Client().Compress(request);
    server_->Process().Log();
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() && response->replayed();
  };
  for (int id = 0; id < 20; ++id) EXPECT_FALSE(replayed(id));
  EXPECT_FALSE(replayed(0));
  const std::string page = server_->Process().Scrape();
  EXPECT_THAT(page, testing::HasSubstr("kvern_replay_evictions_total"));
  EXPECT_THAT(page, testing::Not(testing::HasSubstr("kvern_replay_evictions_total 0\n")));
  // An answer is kept for a second here, then the call runs again.
  EXPECT_TRUE(Eventually([&] { return !replayed(0); }));
}

TEST_F(SmallLimit, OfQueuedBytesIsResourceExhausted) {
  // Scores count as the floats they become, beside the message's own bytes.
  Request request = server_->Paged();
  v1::Tensor* q = request.mutable_sequences(0)->mutable_side()->mutable_q_window();
  q->set_dtype(v1::DTYPE_F32);
  for (const int64_t extent : {int64_t{kLayers}, int64_t{kQHeads}, kTokens, int64_t{kHeadDim}}) {
    q->add_shape(extent);
  }
  q->set_data(std::string(size_t{kLayers} * kQHeads * kTokens * kHeadDim * 4, '\0'));
  *request.add_sequences() = request.sequences(0);
  request.mutable_sequences(1)->set_sequence_id("second");
  ExpectExhausted(server_->Compress(request), "QUEUE_FULL");
}

TEST_F(SmallLimit, OfQueuedCallsShedsTheNewestWithADelay) {
  Request request = InlineRequest(kTokens);
  request.mutable_policy()->mutable_selector()->set_name("diverse");
  std::atomic<int> finished{0}, shed{0};
  const auto call = [&] {
    const absl::Status status = server_->Compress(request);
    if (ReasonOf(status) == "QUEUE_FULL") {
      ExpectExhausted(status, "QUEUE_FULL");
      ++shed;
    } else {
      EXPECT_TRUE(status.ok()) << status;
      ++finished;
    }
  };
  // Until it happened: which calls meet in the queue is the scheduler's choice.
  EXPECT_TRUE(Eventually([&] {
    std::vector<std::thread> callers;
    for (int i = 0; i < 20; ++i) callers.emplace_back(call);
    for (std::thread& caller : callers) caller.join();
    server_->Process().Log();
    return shed > 0;
  }));
  EXPECT_GT(finished, 0);
  EXPECT_THAT(server_->Process().Scrape(),
              testing::HasSubstr("kvern_rejected_total{reason=\"queue_full\"}"));
}

TEST_F(SmallLimit, OfStoreBytesIsResourceExhausted) {
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(Put(std::to_string(i), 192).ok());
  for (int i = 2; i < 20; ++i) ExpectExhausted(Put(std::to_string(i), 192), "");
  const auto listed = server_->Client().ListSequences();
  EXPECT_EQ(listed->sequences_size(), 2);
  EXPECT_LE(listed->used_bytes(), listed->capacity_bytes());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(server_->Client().DeleteSequence("sequences/" + std::to_string(i)).ok());
  }
  EXPECT_TRUE(Eventually([&] { return server_->Client().ListSequences()->used_bytes() == 0; }));
}

}  // namespace
}  // namespace kvern::hostile
