// The hash that guards replays: sees every field but the tensors' bytes.
#include "server/rpc/request_hash.h"

#include <string>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"

namespace kvern::rpc {
namespace {

v1::CompressCacheRequest Request() {
  v1::CompressCacheRequest request;
  request.set_request_id("r");
  request.set_model("models/m");
  auto* params = request.mutable_policy()->mutable_budgeter()->mutable_params();
  for (const char* key : {"a", "b", "c", "d"}) (*params)[key] = "1";
  v1::SequenceRequest* sequence = request.add_sequences();
  sequence->set_sequence_id("s");
  sequence->mutable_inline_()->mutable_k()->add_shape(4);
  sequence->mutable_inline_()->mutable_k()->set_data("short");
  sequence->mutable_inline_()->mutable_v()->set_data(std::string(1000, 'v'));
  sequence->mutable_side()->mutable_q_window()->set_data(std::string(100, 'q'));
  return request;
}

TEST(RequestHash, LeavesTheRequestAsItWas) {
  v1::CompressCacheRequest request = Request();
  const void* v = request.sequences(0).inline_().v().data().data();
  HashWithoutTensors(&request);
  EXPECT_EQ(request.SerializeAsString().size(), Request().SerializeAsString().size());
  EXPECT_EQ(request.sequences(0).inline_().k().data(), "short");
  EXPECT_EQ(request.sequences(0).inline_().v().data(), std::string(1000, 'v'));
  EXPECT_EQ(request.sequences(0).side().q_window().data(), std::string(100, 'q'));
  EXPECT_FALSE(request.sequences(0).side().has_external_scores());
  EXPECT_EQ(request.sequences(0).inline_().v().data().data(), v) << "bytes were copied";
}

TEST(RequestHash, IgnoresTensorBytesOnly) {
  v1::CompressCacheRequest request = Request();
  const uint64_t hash = HashWithoutTensors(&request);
  request.mutable_sequences(0)->mutable_inline_()->mutable_v()->set_data("other");
  EXPECT_EQ(HashWithoutTensors(&request), hash);
  request.mutable_sequences(0)->mutable_inline_()->mutable_k()->set_shape(0, 5);
  EXPECT_NE(HashWithoutTensors(&request), hash);
  request = Request();
  (*request.mutable_policy()->mutable_budgeter()->mutable_params())["d"] = "2";
  EXPECT_NE(HashWithoutTensors(&request), hash);
  request = Request();
  request.set_validate_only(true);
  EXPECT_NE(HashWithoutTensors(&request), hash);
}

TEST(RequestHash, DoesNotDependOnTheOrderOfMaps) {
  v1::CompressCacheRequest forward = Request(), backward = Request();
  auto* params = backward.mutable_policy()->mutable_budgeter()->mutable_params();
  params->clear();
  for (const char* key : {"d", "c", "b", "a"}) (*params)[key] = "1";
  EXPECT_EQ(HashWithoutTensors(&forward), HashWithoutTensors(&backward));
}

TEST(Sha256, MatchesThePublishedVector) {
  EXPECT_EQ(absl::BytesToHexString(Sha256("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

}  // namespace
}  // namespace kvern::rpc
