// Answers on the wire: bytes little-endian, absent figures absent, faults with their details.
#include "server/rpc/compress_to_proto.h"

#include <cstring>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"

namespace kvern::rpc {
namespace {

engine::SequenceResult Applied() {
  engine::SequenceResult result;
  result.sequence_id = "s";
  result.outcome = engine::Outcome::kApplied;
  result.epoch = 3;
  result.logical_tokens = 100;
  result.physical_tokens = 40;
  result.block_ids = {5, 9};
  result.freed_block_ids = {7};
  result.layers = 1;
  result.kv_heads = 2;
  result.max_kept = 2;
  result.head_dim = 8;
  result.kept = {0, 3, 1, -1};
  result.kept_counts = {2, 1};
  result.shape_class = pipeline::ShapeClass::kS4;
  result.dropped_tokens = 60;
  result.k_error = 0.5;
  result.preset = "balanced";
  result.dtype = DType::kF16;
  result.k.resize(64);
  result.v.resize(64);
  result.stored_sequence = "out";
  result.bytes_before = 10;
  result.bytes_after = 4;
  result.source_tokens_total = 200;
  result.kept_tokens_total = 80;
  result.queue_us = 3;
  result.micros.score = 11;
  return result;
}

TEST(CompressToProto, CarriesAnAppliedResult) {
  engine::CompressResult result;
  result.replayed = true;
  result.results.push_back(Applied());
  v1::CompressCacheResponse response;
  ToProto(result, &response);
  EXPECT_TRUE(response.replayed());
  ASSERT_EQ(response.results_size(), 1);
  const v1::SequenceResult& out = response.results(0);
  EXPECT_EQ(out.outcome(), v1::OUTCOME_APPLIED);
  EXPECT_FALSE(out.has_status());
  EXPECT_EQ(out.num_dropped_tokens(), 60);
  EXPECT_EQ(out.block_ids(1), 9u);
  EXPECT_EQ(out.freed_block_ids(0), 7u);
  EXPECT_EQ(out.kept().size(), 16u);
  EXPECT_EQ(out.kept().substr(4, 4), std::string("\x03\0\0\0", 4));
  EXPECT_EQ(out.kept().substr(12, 4), "\xFF\xFF\xFF\xFF");
  EXPECT_EQ(out.shape_class(), v1::SHAPE_CLASS_S4);
  EXPECT_EQ(out.k().dtype(), v1::DTYPE_F16);
  ASSERT_EQ(out.k().shape_size(), 4);
  EXPECT_EQ(out.k().shape(2), 2);
  EXPECT_EQ(out.v().data().size(), 64u);
  EXPECT_FALSE(out.has_packed());
  EXPECT_EQ(out.stored_sequence(), "sequences/out");
  EXPECT_EQ(out.quality().k_error(), 0.5);
  EXPECT_FALSE(out.quality().has_v_error());
  EXPECT_FALSE(out.quality().has_kept_attention_mass());
  EXPECT_EQ(out.timings().score_us(), 11);
  EXPECT_EQ(out.resolved().preset(), "balanced");
}

TEST(CompressToProto, SaysAChainOncePerRunOfEqualOnes) {
  engine::CompressResult result;
  for (const char* preset : {"balanced", "balanced", "evict50", "balanced"}) {
    result.results.emplace_back().preset = preset;
  }
  v1::CompressCacheResponse response;
  ToProto(result, &response);
  EXPECT_TRUE(response.results(0).has_resolved());
  EXPECT_FALSE(response.results(1).has_resolved());
  EXPECT_EQ(response.results(2).resolved().preset(), "evict50");
  EXPECT_EQ(response.results(3).resolved().preset(), "balanced");
}

TEST(CompressToProto, CarriesThePackedForm) {
  engine::CompressResult result;
  result.results.emplace_back();
  pipeline::PackedKv packed;
  packed.blocks.resize(128);
  packed.table.push_back({1, 0, 1, 5, 3, 0, 64, 0});
  packed.mean_key.resize(8);
  result.results[0].packed = packed;
  v1::CompressCacheResponse response;
  ToProto(result, &response);
  const v1::PackedKv& out = response.results(0).packed();
  EXPECT_EQ(out.blocks().size(), 128u);
  ASSERT_EQ(out.table().size(), 64u);
  int64_t codec = 0;
  std::memcpy(&codec, out.table().data() + 24, 8);
  EXPECT_EQ(codec, 5);
  EXPECT_EQ(out.mean_key().size(), 16u);
}

TEST(CompressToProto, CarriesAFaultWithItsDetails) {
  engine::CompressResult result;
  result.results.emplace_back();
  result.results[0].outcome = engine::Outcome::kFailed;
  result.results[0].status = WithReason(absl::NotFoundError("pool: gone"), "POOL_EXPIRED");
  v1::CompressCacheResponse response;
  ToProto(result, &response);
  EXPECT_EQ(response.results(0).outcome(), v1::OUTCOME_FAILED);
  EXPECT_EQ(response.results(0).status().code(), 5);
  EXPECT_EQ(response.results(0).status().message(), "pool: gone");
  EXPECT_EQ(response.results(0).status().details_size(), 1);
}

TEST(CompressToProto, NamesFieldsAsTheEngineDoes) {
  engine::CompressResult result;
  result.results.resize(2);
  result.results[0].status = WithField(absl::InvalidArgumentError("x"), "sequences[0].inline");
  result.results[1].status = WithField(absl::InvalidArgumentError("x"), "policy.preset");
  v1::CompressCacheResponse response;
  ToProto(result, &response);
  const char* want[] = {"sequences[0].inline", "policy.preset"};
  for (int i = 0; i < 2; ++i) {
    google::rpc::BadRequest request;
    ASSERT_TRUE(response.results(i).status().details(0).UnpackTo(&request));
    EXPECT_EQ(request.field_violations(0).field(), want[i]);
  }
}

TEST(Summarize, CountsOutcomesAndAddsUp) {
  engine::CompressResult result;
  result.results = {Applied(), Applied(), engine::SequenceResult{}};
  result.results[1].outcome = engine::Outcome::kNoop;
  const engine::CompressSummary summary = Summarize(result);
  EXPECT_EQ(summary.sequences, 3);
  EXPECT_EQ(summary.applied, 1);
  EXPECT_EQ(summary.noop, 1);
  EXPECT_EQ(summary.skipped, 1);
  EXPECT_EQ(summary.failed, 0);
  EXPECT_EQ(summary.source_tokens, 400);
  EXPECT_EQ(summary.kept_tokens, 160);
  EXPECT_EQ(summary.bytes_after, 8);
  EXPECT_EQ(summary.queue_us, 3);
  EXPECT_EQ(summary.micros.score, 22);
  EXPECT_EQ(summary.preset, "balanced");
}

}  // namespace
}  // namespace kvern::rpc
