// Streams of queries that lie, ask for too much or never end: the statistics take no harm.
#include <grpcpp/channel.h>

#include <limits>

#include "client/cpp/observe.h"
#include "client/cpp/status_details.h"
#include "kvern/v1/model.grpc.pb.h"
#include "tests/integration/hostile/eventually.h"
#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using absl::StatusCode;
using Messages = std::vector<v1::ObserveQueriesRequest>;

constexpr int64_t kQueries = 10;

absl::Status Send(const client::Client& client, const Messages& messages) {
  const auto stub = v1::ModelService::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ObserveQueriesResponse response;
  const auto writer = stub->ObserveQueries(&context, &response);
  for (const auto& message : messages) {
    if (!writer->Write(message)) break;  // the server has said enough
  }
  writer->WritesDone();
  return client::FromGrpc(writer->Finish());
}

// A first message and a second one.
Messages Valid(const std::string& model) {
  Messages messages(2);
  messages[0].set_model(model);
  for (auto& message : messages) {
    message.set_form(v1::QUERY_FORM_BEFORE_ROPE);
    v1::Tensor* queries = message.mutable_queries();
    queries->set_dtype(v1::DTYPE_BF16);
    for (const int64_t extent : {int64_t{kLayers}, int64_t{kQHeads}, kQueries, int64_t{kHeadDim}}) {
      queries->add_shape(extent);
    }
    queries->set_data(RandomBf16(kLayers * kQHeads * kQueries * kHeadDim, /*seed=*/5));
  }
  return messages;
}

// Observes a model of its own: what is observed of the witnesses' model would change their answer.
class BadObserve : public HostileTest {
 protected:
  static constexpr char kModel[] = "models/observed";

  void SetUp() override {
    HostileTest::SetUp();
    v1::Model model = TestModel();
    model.set_name(kModel);
    ASSERT_TRUE(server_->Client().RegisterModel(model).ok());
    ASSERT_TRUE(Send(server_->Client(), Valid(kModel)).ok());
    before_ = Exported();
  }
  void TearDown() override {
    ASSERT_TRUE(server_->Client().DeleteModel(kModel).ok());
    HostileTest::TearDown();
  }
  static std::string Exported() {
    const auto file = client::ExportCalibration(server_->Client(), kModel, "kvern-query-moments/1");
    EXPECT_TRUE(file.ok()) << file.status();
    return file.value_or("");
  }

  std::string before_;
};

struct ObserveCase {
  std::string what;
  std::function<void(Messages*)> spoil;
  Refusal want;
};

TEST_F(BadObserve, FirstMessagesThatAreWrongCountNothing) {
  const auto data = [](Messages* m) { return (*m)[0].mutable_queries()->mutable_data(); };
  const std::vector<ObserveCase> cases = {
      {"no message", [](Messages* m) { m->clear(); }, {"model"}},
      {"no model", [](Messages* m) { (*m)[0].clear_model(); }, {"model"}},
      {"model not a name", [](Messages* m) { (*m)[0].set_model("../models"); }, {"model"}},
      {"model unknown",
       [](Messages* m) { (*m)[0].set_model("models/none"); },
       {"", StatusCode::kNotFound, "MODEL_UNKNOWN"}},
      {"request_id too long",
       [](Messages* m) { (*m)[0].set_request_id(std::string(129, 'x')); },
       {"request_id"}},
      {"no form", [](Messages* m) { (*m)[0].clear_form(); }, {"form"}},
      {"positions before RoPE", [](Messages* m) { (*m)[0].add_positions(1); }, {"positions"}},
      {"layer beyond the model",
       [](Messages* m) { (*m)[0].add_layer_indices(kLayers); },
       {"layer_indices[0]"}},
      {"NaN",
       [=](Messages* m) { data(m)->replace(0, 2, "\xc0\x7f"); },
       {"queries.data", StatusCode::kInvalidArgument, "", "at element 0"}},
      {"infinity",
       [=](Messages* m) { data(m)->replace(2, 2, std::string("\x80\x7f", 2)); },
       {"queries.data", StatusCode::kInvalidArgument, "", "at element 1"}},
      {"bytes short", [=](Messages* m) { data(m)->pop_back(); }, {"queries.data"}},
      {"extents that overflow",
       [](Messages* m) {
         for (int axis = 0; axis < 4; ++axis) {
           (*m)[0].mutable_queries()->set_shape(axis, std::numeric_limits<int64_t>::max());
         }
       },
       {"queries.shape[0]"}},
      {"negative extent",
       [](Messages* m) { (*m)[0].mutable_queries()->set_shape(2, -1); },
       {"queries.shape[2]"}},
      {"above 4 MiB", [=](Messages* m) { data(m)->resize((4 << 20) + 2); }, {"queries.data"}},
  };
  for (const ObserveCase& bad : cases) {
    SCOPED_TRACE(bad.what);
    Messages messages = Valid(kModel);
    bad.spoil(&messages);
    ExpectRefused(Send(server_->Client(), messages), bad.want);
    EXPECT_TRUE(Exported() == before_);
  }
}

TEST_F(BadObserve, WhatCameBeforeARefusedMessageStays) {
  const std::vector<ObserveCase> cases = {
      {"model again", [](Messages* m) { (*m)[1].set_model(kModel); }, {"model"}},
      {"id again", [](Messages* m) { (*m)[1].set_request_id("x"); }, {"request_id"}},
      {"bytes short",
       [](Messages* m) { (*m)[1].mutable_queries()->mutable_data()->pop_back(); },
       {"queries.data"}},
  };
  int64_t tokens = 2 * kQueries;
  for (const ObserveCase& bad : cases) {
    SCOPED_TRACE(bad.what);
    Messages messages = Valid(kModel);
    bad.spoil(&messages);
    ExpectRefused(Send(server_->Client(), messages), bad.want);
    tokens += kQueries;
    const auto described = server_->Client().DescribeModel(kModel);
    ASSERT_TRUE(described.ok()) << described.status();
    EXPECT_THAT(described->observed().layer_tokens(), testing::Each(tokens));
  }
}

TEST_F(BadObserve, AModelDeletedMeanwhileIsNotFound) {
  const auto stub = v1::ModelService::NewStub(server_->Client().Channel());
  grpc::ClientContext context;
  server_->Client().Prepare(&context);
  v1::ObserveQueriesResponse response;
  const auto writer = stub->ObserveQueries(&context, &response);
  const Messages messages = Valid(kModel);
  ASSERT_TRUE(writer->Write(messages[0]));
  ASSERT_TRUE(Eventually([&] {
    return server_->Client().DescribeModel(kModel)->observed().layer_tokens(0) == 3 * kQueries;
  }));
  ASSERT_TRUE(server_->Client().DeleteModel(kModel).ok());
  v1::Model model = TestModel();
  model.set_name(kModel);
  ASSERT_TRUE(server_->Client().RegisterModel(model).ok());
  writer->Write(messages[1]);
  writer->WritesDone();
  ExpectRefused(client::FromGrpc(writer->Finish()), {"", StatusCode::kNotFound, "MODEL_UNKNOWN"});
}

TEST_F(BadObserve, ExportsRefuseWhatTheyCannotMake) {
  const auto ask = [&](const std::string& model, const std::string& format) {
    return client::ExportCalibration(server_->Client(), model, format).status();
  };
  ExpectRefused(ask(kModel, ""), {"format"});
  ExpectRefused(ask(kModel, std::string(4096, 'x')), {"format"});
  ExpectRefused(ask("models/none", "kvern-calibration/1"),
                {"", StatusCode::kNotFound, "MODEL_UNKNOWN"});
  ExpectRefused(ask("", "kvern-calibration/1"), {"model"});
  ExpectRefused(ask(TestModel().name(), "kvern-calibration/1"),
                {"", StatusCode::kFailedPrecondition, "OBSERVED_TOO_FEW"});
}

// A server of its own, where statistics are dear and patience is short.
TEST(ObserveLimits, HoldAtOneModelMoreAndForSilentStreams) {
  const auto server =
      HostileServer::Start({"--observed-bytes", "200KiB", "--idle-stream-seconds", "1"});
  ASSERT_TRUE(server.ok()) << server.status();
  const client::Client& client = (*server)->Client();
  absl::Status refused;
  int observed = 0;
  for (int index = 0; index < 10; ++index) {
    v1::Model model = TestModel();
    model.set_name("models/observed-" + std::to_string(index));
    ASSERT_TRUE(client.RegisterModel(model).ok());
    const absl::Status status = Send(client, Valid(model.name()));
    status.ok() ? void(++observed) : refused.Update(status);
  }
  EXPECT_GT(observed, 0);
  EXPECT_LT(observed, 10);
  ExpectRefused(refused, {"", StatusCode::kResourceExhausted, "QUOTA", "--observed-bytes"});

  const auto stub = v1::ModelService::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ObserveQueriesResponse response;
  const auto writer = stub->ObserveQueries(&context, &response);
  ASSERT_TRUE(writer->Write(Valid("models/observed-0")[0]));
  ExpectRefused(client::FromGrpc(writer->Finish()),
                {"", StatusCode::kDeadlineExceeded, "STREAM_IDLE"});
  (*server)->ExpectUnharmed();
}

}  // namespace
}  // namespace kvern::hostile
