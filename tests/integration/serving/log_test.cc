// Log lines: one per call, each a JSON object of its own, and never a byte of a cache.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <sstream>

#include "absl/strings/escaping.h"
#include "client/cpp/upload.h"
#include "nlohmann/json.hpp"
#include "tests/integration/hostile/raw_call.h"
#include "tests/integration/hostile/test_pool.h"

namespace kvern::serving {
namespace {

using hostile::InlineRequest;
using nlohmann::json;
using support::ServerProcess;
using testing::HasSubstr;
using testing::Not;

constexpr int64_t kTokens = 64;
constexpr char kSecret[] = "KVERNSECRETBYTES";

std::string Secrets(size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += kSecret;
  text.resize(bytes);
  return text;
}

v1::CompressCacheRequest SecretRequest() {
  v1::CompressCacheRequest request = InlineRequest(kTokens);
  v1::InlineSource* source = request.mutable_sequences(0)->mutable_inline_();
  for (v1::Tensor* tensor : {source->mutable_k(), source->mutable_v()}) {
    tensor->set_data(Secrets(tensor->data().size()));
  }
  return request;
}

// Good calls, refused calls, and a client that tries to forge lines. Answers the number of
// CompressCache calls.
int Talk(const client::Client& client) {
  EXPECT_TRUE(client.RegisterModel(hostile::TestModel()).ok());
  v1::CompressCacheRequest good = SecretRequest();
  EXPECT_TRUE(client.Compress(good).ok());
  good.mutable_policy()->mutable_codecs()->set_k("lm4+rm");
  good.mutable_policy()->mutable_codecs()->set_v("lm4");
  EXPECT_TRUE(client.Compress(good).ok());
  v1::CompressCacheRequest cut = SecretRequest();
  cut.mutable_sequences(0)->mutable_inline_()->mutable_k()->mutable_data()->pop_back();
  EXPECT_TRUE(client.Compress(cut).ok());
  v1::CompressCacheRequest forged = SecretRequest();
  forged.set_request_id("\"}\n{\"level\":\"info\",\"rpc\":\"Forged\",\"x\":\"\x01");
  forged.set_model("models/\nforged");
  EXPECT_FALSE(client.Compress(forged).ok());
  // No text at all: gRPC refuses it before there is a call to speak of.
  EXPECT_FALSE(hostile::RawCall(client.Channel(), "/kvern.v1.CompressionService/CompressCache",
                                std::string("\x0A\x02\xFF\xFE", 4))
                   .status.ok());
  v1::StoredSequence header;
  header.set_name("sequences/secret");
  header.set_model(hostile::TestModel().name());
  header.set_dtype(v1::DTYPE_BF16);
  header.set_num_tokens(kTokens);
  const std::string bytes = Secrets(SecretRequest().sequences(0).inline_().k().data().size());
  const auto span = std::as_bytes(std::span(bytes));
  EXPECT_TRUE(client::PutSequence(client, header, {span, span, kTokens}, nullptr).ok());
  EXPECT_TRUE(
      client::FetchSequence(client, header.name(), client::FetchForm::kAsStored, nullptr).ok());
  return 4;
}

void ExpectNoSecret(const std::string& text) {
  EXPECT_THAT(text, Not(HasSubstr("KVERNSECRET")));
  EXPECT_THAT(text, Not(HasSubstr(absl::BytesToHexString("SECRETBY"))));
  EXPECT_THAT(text, Not(HasSubstr(absl::Base64Escape("KVERNSECRETB"))));
}

TEST(CallLog, HasOneJsonObjectPerCallAndNoBytesOfACache) {
  const auto server = ServerProcess::Start({"--log-format", "json", "--log-level", "debug"});
  ASSERT_NE(server, nullptr);
  const int calls = Talk(*client::Client::Connect(server->Address()));
  const std::string page = server->Scrape();
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0);
  const std::string log = server->Log();
  int lines = 0;
  std::istringstream stream(log);
  for (std::string line; std::getline(stream, line);) {
    SCOPED_TRACE(line);
    const json fields = json::parse(line, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(fields.is_object());
    EXPECT_TRUE(fields.contains("time") && fields.contains("level"));
    EXPECT_NE(fields.value("rpc", ""), "Forged");
    if (fields.value("rpc", "") != "CompressCache") continue;
    ++lines;
    EXPECT_TRUE(fields.contains("code") && fields.contains("seconds") && fields.contains("peer"));
    EXPECT_EQ(fields["code"] == "ok", fields["level"] == "info");
  }
  EXPECT_EQ(lines, calls);
  ExpectNoSecret(log);
  ExpectNoSecret(page);
}

TEST(CallLog, InTextHasOneLinePerCallAndNoBytesOfACache) {
  const auto server = ServerProcess::Start({"--log-level", "debug"});
  ASSERT_NE(server, nullptr);
  const int calls = Talk(*client::Client::Connect(server->Address()));
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0);
  const std::string log = server->Log();
  int lines = 0;
  for (size_t at = 0; (at = log.find("rpc=\"CompressCache\"", at)) != std::string::npos; ++at) {
    ++lines;
  }
  EXPECT_EQ(lines, calls);
  ExpectNoSecret(log);
}

}  // namespace
}  // namespace kvern::serving
