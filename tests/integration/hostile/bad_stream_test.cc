// Streams into the store and into the calibrations that lie about what follows: nothing is stored.
#include <grpcpp/channel.h>

#include <limits>

#include "client/cpp/status_details.h"
#include "client/cpp/upload.h"
#include "formats/safetensors.h"
#include "kvern/v1/model.grpc.pb.h"
#include "kvern/v1/store.grpc.pb.h"
#include "tests/integration/hostile/eventually.h"
#include "tests/integration/hostile/hostile_server.h"

namespace kvern::hostile {
namespace {

using absl::StatusCode;

constexpr int64_t kStoredTokens = 20;

// Sends messages in order to a client stream, and answers its status.
template <class Service, class Request, class Response>
absl::Status Send(const client::Client& client,
                  std::unique_ptr<grpc::ClientWriter<Request>> (Service::Stub::*method)(
                      grpc::ClientContext*, Response*),
                  const std::vector<Request>& messages) {
  const auto stub = Service::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  Response response;
  const auto writer = (stub.get()->*method)(&context, &response);
  for (const Request& message : messages) {
    if (!writer->Write(message)) break;  // the server has said enough
  }
  writer->WritesDone();
  return client::FromGrpc(writer->Finish());
}

absl::Status Put(const client::Client& client, const std::vector<v1::PutSequenceRequest>& stream) {
  return Send<v1::StoreService>(client, &v1::StoreService::Stub::PutSequence, stream);
}
absl::Status Append(const client::Client& client,
                    const std::vector<v1::AppendSequenceRequest>& stream) {
  return Send<v1::StoreService>(client, &v1::StoreService::Stub::AppendSequence, stream);
}

void FillChunk(v1::Chunk::Part part, int64_t tokens, v1::Chunk* chunk) {
  chunk->set_part(part);
  chunk->set_data(RandomBf16(int64_t{kLayers} * kKvHeads * tokens * kHeadDim, /*seed=*/part));
}

using PutMessages = std::vector<v1::PutSequenceRequest>;
using AppendMessages = std::vector<v1::AppendSequenceRequest>;

PutMessages ValidPut(const std::string& name) {
  PutMessages stream(3);
  v1::StoredSequence* header = stream[0].mutable_header();
  header->set_name(name);
  header->set_model(TestModel().name());
  header->set_dtype(v1::DTYPE_BF16);
  header->set_num_tokens(kStoredTokens);
  FillChunk(v1::Chunk::PART_K, kStoredTokens, stream[1].mutable_chunk());
  FillChunk(v1::Chunk::PART_V, kStoredTokens, stream[2].mutable_chunk());
  return stream;
}

AppendMessages ValidAppend(const std::string& name) {
  AppendMessages stream(3);
  stream[0].mutable_header()->set_name(name);
  stream[0].mutable_header()->set_num_tokens(2);
  FillChunk(v1::Chunk::PART_K, 2, stream[1].mutable_chunk());
  FillChunk(v1::Chunk::PART_V, 2, stream[2].mutable_chunk());
  return stream;
}

template <class Stream>
struct StreamCase {
  std::string what;
  std::function<void(Stream*)> spoil;
  Refusal want;
};

class BadStore : public HostileTest {
 protected:
  static constexpr char kStored[] = "sequences/stored";

  void SetUp() override {
    HostileTest::SetUp();
    ASSERT_TRUE(Put(server_->Client(), ValidPut(kStored)).ok());
    // What the test before fetched and deleted is gone only with the stream that fetched it.
    ASSERT_TRUE(Eventually([] {
      const auto listed = server_->Client().ListSequences();
      return listed.ok() && listed->used_bytes() == listed->sequences(0).stored_bytes();
    }));
    before_ = Listing();
  }
  // What is stored is what was there, and holds the bytes it held.
  void TearDown() override {
    // A stream gives its pages back right after its status.
    EXPECT_TRUE(Eventually([&] { return Listing() == before_; })) << Listing();
    const auto fetched =
        client::FetchSequence(server_->Client(), kStored, client::FetchForm::kAsStored, nullptr);
    ASSERT_TRUE(fetched.ok()) << fetched.status();
    EXPECT_TRUE(fetched->k == ValidPut(kStored)[1].chunk().data());
    EXPECT_TRUE(fetched->v == ValidPut(kStored)[2].chunk().data());
    ASSERT_TRUE(server_->Client().DeleteSequence(kStored).ok());
    HostileTest::TearDown();
  }
  static std::string Listing() { return server_->Client().ListSequences()->DebugString(); }

 private:
  std::string before_;
};

v1::StoredSequence* Header(PutMessages* stream) { return (*stream)[0].mutable_header(); }

TEST_F(BadStore, PutWithABadHeaderIsRefusedByField) {
  using S = PutMessages;
  const std::vector<StreamCase<S>> cases = {
      {"no name", [](S* s) { Header(s)->clear_name(); }, {"header.name"}},
      {"name taken", [](S* s) { Header(s)->set_name(kStored); }, {"", StatusCode::kAlreadyExists}},
      {"no model", [](S* s) { Header(s)->clear_model(); }, {"header.model"}},
      {"model unknown",
       [](S* s) { Header(s)->set_model("models/none"); },
       {"", StatusCode::kNotFound, "MODEL_UNKNOWN"}},
      {"layers descend",
       [](S* s) {
         Header(s)->add_layer_indices(1);
         Header(s)->add_layer_indices(1);
       },
       {"header.layer_indices[1]"}},
      {"layer of no model",
       [](S* s) { Header(s)->add_layer_indices(-1); },
       {"header.layer_indices[0]"}},
      {"no dtype", [](S* s) { Header(s)->clear_dtype(); }, {"header.dtype"}},
      {"tokens negative", [](S* s) { Header(s)->set_num_tokens(-1); }, {"header.num_tokens"}},
      {"2^40 tokens",
       [](S* s) { Header(s)->set_num_tokens(int64_t{1} << 40); },
       {"header.num_tokens"}},
      {"logical below physical",
       [](S* s) { Header(s)->set_num_logical_tokens(1); },
       {"header.num_logical_tokens"}},
      {"epoch that cannot grow",
       [](S* s) { Header(s)->set_epoch(std::numeric_limits<uint64_t>::max()); },
       {"header.epoch"}},
      {"positions too few",
       [](S* s) { Header(s)->mutable_positions()->add_values(0); },
       {"header.positions.values"}},
      {"more tokens than the store",
       [](S* s) { Header(s)->set_num_tokens(1 << 22); },
       {"", StatusCode::kResourceExhausted}}};
  for (const StreamCase<S>& bad : cases) {
    SCOPED_TRACE(bad.what);
    S stream = ValidPut("sequences/new");
    bad.spoil(&stream);
    ExpectRefused(Put(server_->Client(), stream), bad.want);
  }
}

TEST_F(BadStore, PutWithBadChunksIsRefusedByField) {
  using S = PutMessages;
  const auto chunk = [](S* s) { return (*s)[1].mutable_chunk(); };
  const std::vector<StreamCase<S>> cases = {
      {"nothing", [](S* s) { s->clear(); }, {"header"}},
      {"no header", [](S* s) { s->erase(s->begin()); }, {"header"}},
      {"two headers", [](S* s) { s->insert(s->begin(), (*s)[0]); }, {"header"}},
      {"no part", [=](S* s) { chunk(s)->clear_part(); }, {"chunk.part"}},
      {"packed part", [=](S* s) { chunk(s)->set_part(v1::Chunk::PART_PACKED); }, {"chunk.part"}},
      {"a gap", [=](S* s) { chunk(s)->set_offset(8); }, {"chunk.offset"}},
      {"offset negative", [=](S* s) { chunk(s)->set_offset(-8); }, {"chunk.offset"}},
      {"a byte more", [=](S* s) { chunk(s)->mutable_data()->push_back('x'); }, {"chunk.data"}},
      {"a byte less", [=](S* s) { chunk(s)->mutable_data()->pop_back(); }, {"chunk"}},
      {"more than 4 MiB",
       [=](S* s) { chunk(s)->set_data(std::string((4 << 20) + 1, 'x')); },
       {"chunk.data"}},
      {"keys twice", [](S* s) { (*s)[2] = (*s)[1]; }, {"chunk.offset"}},
      {"no values", [](S* s) { s->pop_back(); }, {"chunk"}}};
  for (const StreamCase<S>& bad : cases) {
    SCOPED_TRACE(bad.what);
    S stream = ValidPut("sequences/new");
    bad.spoil(&stream);
    ExpectRefused(Put(server_->Client(), stream), bad.want);
  }
}

TEST_F(BadStore, BadAppendsAreRefusedByField) {
  using S = AppendMessages;
  const auto header = [](S* s) { return (*s)[0].mutable_header(); };
  const std::vector<StreamCase<S>> cases = {
      {"no name", [=](S* s) { header(s)->clear_name(); }, {"header.name"}},
      {"unknown",
       [=](S* s) { header(s)->set_name("sequences/none"); },
       {"", StatusCode::kNotFound, "SEQUENCE_UNKNOWN"}},
      {"no tokens", [=](S* s) { header(s)->set_num_tokens(0); }, {"header.num_tokens"}},
      {"2^62 tokens",
       [=](S* s) { header(s)->set_num_tokens(int64_t{1} << 62); },
       {"header.num_tokens"}},
      {"epoch of another time",
       [=](S* s) { header(s)->set_epoch(9); },
       {"", StatusCode::kAborted, "EPOCH_MISMATCH"}},
      {"positions too few", [=](S* s) { header(s)->add_positions(50); }, {"header.positions"}},
      {"positions descend",
       [=](S* s) {
         header(s)->add_positions(50);
         header(s)->add_positions(49);
       },
       {"header.positions[1]"}},
      {"positions of the past",
       [=](S* s) {
         header(s)->add_positions(kStoredTokens - 1);
         header(s)->add_positions(kStoredTokens);
       },
       {"header.positions"}},
      {"no header", [](S* s) { s->erase(s->begin()); }, {"header"}},
      {"no values", [](S* s) { s->pop_back(); }, {"chunk"}}};
  for (const StreamCase<S>& bad : cases) {
    SCOPED_TRACE(bad.what);
    S stream = ValidAppend(kStored);
    bad.spoil(&stream);
    ExpectRefused(Append(server_->Client(), stream), bad.want);
  }
}

TEST_F(BadStore, NamesThatAreNoneAreRefusedByField) {
  const client::Client& client = server_->Client();
  for (const std::string& name : {std::string(), std::string("stored"), std::string("sequences/"),
                                  "sequences/" + std::string(129, 's')}) {
    SCOPED_TRACE(name);
    ExpectRefused(client.GetSequence(name).status(), {"name"});
    ExpectRefused(client.DeleteSequence(name), {"name"});
    ExpectRefused(
        client::FetchSequence(client, name, client::FetchForm::kDecoded, nullptr).status(),
        {"name"});
    ExpectRefused(client.GetModel(name).status(), {"name"});
    ExpectRefused(client.DeleteModel(name), {"name"});
    ExpectRefused(client.UnregisterPool(name), {"name"});
  }
  const Refusal unknown = {"", StatusCode::kNotFound, "SEQUENCE_UNKNOWN"};
  ExpectRefused(client.GetSequence("sequences/none").status(), unknown);
  ExpectRefused(
      client::FetchSequence(client, "sequences/none", client::FetchForm::kAsStored, nullptr)
          .status(),
      unknown);
  ExpectRefused(client.DeleteModel(TestModel().name()),
                {"", StatusCode::kFailedPrecondition, "MODEL_IN_USE"});
}

// A calibration of the test model that passes every check.
struct Centres {
  std::vector<float> re = std::vector<float>(kLayers * kQHeads * kHeadDim / 2, 0.25f);
  std::vector<float> im = re;
  std::vector<float> abs = std::vector<float>(re.size(), 1.0f);
  std::vector<float> sensitivity = std::vector<float>(kLayers, 1.0f);

  formats::Safetensors File() const {
    const std::vector<int64_t> shape = {kLayers, kQHeads, kHeadDim / 2};
    const auto bytes = [](const std::vector<float>& values) {
      return std::as_bytes(std::span(values));
    };
    formats::Safetensors file;
    file.metadata["format"] = "kvern-calibration/1";
    file.tensors["q_mean_re"] = {"F32", shape, bytes(re)};
    file.tensors["q_mean_im"] = {"F32", shape, bytes(im)};
    file.tensors["q_abs_mean"] = {"F32", shape, bytes(abs)};
    file.tensors["layer_sensitivity"] = {"F32", {kLayers}, bytes(sensitivity)};
    return file;
  }
};

class BadCalibration : public HostileTest {
 protected:
  static absl::Status Import(const std::string& bytes, const std::string& sha256 = "") {
    std::vector<v1::ImportCalibrationRequest> stream(1);
    stream[0].set_sha256(sha256);
    stream[0].set_data(bytes);
    return Send<v1::ModelService>(server_->Client(), &v1::ModelService::Stub::ImportCalibration,
                                  stream);
  }
  static absl::Status Import(const formats::Safetensors& file) {
    return Import(formats::WriteSafetensors(file));
  }
  void TearDown() override {
    EXPECT_EQ(server_->Client().ListModels()->calibrations_size(), 0);
    HostileTest::TearDown();
  }
};

TEST_F(BadCalibration, CutAnywhereIsRefused) {
  const std::string file = formats::WriteSafetensors(Centres().File());
  const size_t header = formats::SafetensorsHeader(Centres().File()).size();
  std::vector<size_t> cuts = {0, 1, 7, 8, 9, header / 2, header - 1, header, header + 1};
  for (size_t cut = header; cut < file.size(); cut += 256) cuts.push_back(cut);  // every section
  cuts.push_back(file.size() - 1);
  for (const size_t cut : cuts) {
    SCOPED_TRACE(cut);
    ExpectRefused(Import(file.substr(0, cut)), {""});
  }
  ExpectRefused(Import(file + "x"), {""});
}

TEST_F(BadCalibration, WithABadTensorIsRefusedByItsName) {
  using File = formats::Safetensors;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::string name : {"q_mean_re", "q_mean_im", "q_abs_mean"}) {
    SCOPED_TRACE(name);
    const Centres centres;
    File file = centres.File();
    file.tensors.erase(name);
    ExpectRefused(Import(file), {"", StatusCode::kInvalidArgument, "", name});
    file = centres.File();
    file.tensors[name].shape = {kLayers, kQHeads * 2, kHeadDim / 4};
    if (name != "q_mean_re") {  // the others follow the first
      ExpectRefused(Import(file), {"", StatusCode::kInvalidArgument, "", name});
    }
    file.tensors[name].shape = {kLayers * kQHeads, kHeadDim / 2};
    ExpectRefused(Import(file), {"", StatusCode::kInvalidArgument, "", name});
    file = centres.File();
    file.tensors[name].dtype = "I32";
    ExpectRefused(Import(file), {"", StatusCode::kInvalidArgument, "", name});
  }
  const auto with = [&](std::vector<float> Centres::*member, float value) {
    Centres centres;
    (centres.*member)[1] = value;
    return Import(centres.File());
  };
  ExpectRefused(with(&Centres::re, nan), {"", StatusCode::kInvalidArgument, "", "q_mean_re"});
  ExpectRefused(with(&Centres::im, infinity), {"", StatusCode::kInvalidArgument, "", "q_mean_im"});
  ExpectRefused(with(&Centres::abs, -infinity),
                {"", StatusCode::kInvalidArgument, "", "q_abs_mean"});
  ExpectRefused(with(&Centres::abs, 0.1f), {"", StatusCode::kInvalidArgument, "", "q_abs_mean"});
  ExpectRefused(with(&Centres::sensitivity, -1),
                {"", StatusCode::kInvalidArgument, "", "layer_sensitivity"});
  ExpectRefused(with(&Centres::sensitivity, nan),
                {"", StatusCode::kInvalidArgument, "", "layer_sensitivity"});
}

TEST_F(BadCalibration, OfLyingHeadersAndDigestsIsRefused) {
  const std::string file = formats::WriteSafetensors(Centres().File());
  for (const uint64_t header_bytes : {uint64_t{1} << 62, uint64_t{1} << 30, ~uint64_t{0}}) {
    std::string lying = file;
    std::memcpy(lying.data(), &header_bytes, sizeof(header_bytes));
    ExpectRefused(Import(lying), {""});
  }
  const Centres centres;  // its file borrows the tensors
  formats::Safetensors other = centres.File();
  other.metadata["format"] = "kvern-cache/1";
  ExpectRefused(Import(other), {"", StatusCode::kInvalidArgument, "", "format"});
  ExpectRefused(Import(std::string(8, '\0')), {""});
  // 100,000 brackets: no parser may recurse on them.
  const uint64_t deep_bytes = 100'000;
  std::string deep(reinterpret_cast<const char*>(&deep_bytes), sizeof(deep_bytes));
  ExpectRefused(Import(deep + std::string(deep_bytes, '[')), {""});
  ExpectRefused(Import(file, "short"), {"sha256"});
  ExpectRefused(Import(file, std::string(32, 'z')), {"sha256"});
}

}  // namespace
}  // namespace kvern::hostile
