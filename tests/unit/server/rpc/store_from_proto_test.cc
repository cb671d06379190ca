// Store headers at the edge, and what a sequence becomes by an append.
#include "server/rpc/store_from_proto.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

pipeline::ModelSpec Model() {
  pipeline::ModelSpec model;
  model.num_layers = 3;
  model.q_heads = 2;
  model.kv_heads = 2;
  model.head_dim = 8;
  return model;
}

v1::StoredSequence GoodHeader() {
  v1::StoredSequence header;
  header.set_name("sequences/s");
  header.set_model("models/m");
  header.set_dtype(v1::DTYPE_F16);
  header.set_num_tokens(2);
  return header;
}

TEST(PutHeaderFromProto, FillsLayersPositionsAndLogicalTokens) {
  const auto info = FromProto(GoodHeader(), Model(), Limits{});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->id, "s");
  EXPECT_EQ(info->layer_indices, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(info->positions, (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(info->logical_tokens, 2);
  EXPECT_EQ(info->kv_heads, 2);
  EXPECT_EQ(info->head_dim, 8);
}

TEST(PutHeaderFromProto, NamesTheBadField) {
  using Header = v1::StoredSequence;
  const Spoiled<Header> cases[] = {
      {"header.name", "want sequences/", [](Header* h) { h->clear_name(); }},
      {"header.model", "want models/", [](Header* h) { h->clear_model(); }},
      {"header.dtype", "got 0", [](Header* h) { h->clear_dtype(); }},
      {"header.num_tokens", "got -1", [](Header* h) { h->set_num_tokens(-1); }},
      {"header.num_logical_tokens", "got 1, want 2..",
       [](Header* h) { h->set_num_logical_tokens(1); }},
      {"header.epoch", "got 2^64 - 1", [](Header* h) { h->set_epoch(~uint64_t{0}); }},
      {"header.layer_indices[0]", "got 3, want 0..2", [](Header* h) { h->add_layer_indices(3); }},
      {"header.layer_indices[1]", "got 1 after 1",
       [](Header* h) {
         h->add_layer_indices(1);
         h->add_layer_indices(1);
       }},
      {"header.positions.values", "want one per token, 2",
       [](Header* h) { h->mutable_positions()->add_values(0); }},
      {"header.positions.values", "got 2, want below num_logical_tokens 2",
       [](Header* h) {
         h->mutable_positions()->add_values(0);
         h->mutable_positions()->add_values(2);
       }},
      {"header.positions", "want a position for every token",
       [](Header* h) {
         h->mutable_positions()->set_per_head(true);
         for (int row = 0; row < 6; ++row) {
           h->mutable_positions()->add_values(0);
           h->mutable_positions()->add_values(row == 3 ? -1 : 1);
         }
       }},
  };
  for (const Spoiled<Header>& one : cases) {
    SCOPED_TRACE(one.field);
    Header header = GoodHeader();
    one.spoil(&header);
    ExpectBadField(FromProto(header, Model(), Limits{}).status(), one.field, one.message);
  }
}

TEST(AppendHeaderFromProto, NamesTheBadField) {
  using Header = v1::AppendHeader;
  const Spoiled<Header> cases[] = {
      {"header.name", "want sequences/", [](Header* h) { h->set_name("s"); }},
      {"header.epoch", "got 2^64 - 1", [](Header* h) { h->set_epoch(~uint64_t{0}); }},
      {"header.num_tokens", "got 0, want 1..", [](Header* h) { h->set_num_tokens(0); }},
      {"header.positions", "got 1 positions, want one per token, 2",
       [](Header* h) { h->add_positions(0); }},
      {"header.positions[1]", "got 4 after 4",
       [](Header* h) {
         h->add_positions(4);
         h->add_positions(4);
       }},
  };
  for (const Spoiled<Header>& one : cases) {
    SCOPED_TRACE(one.field);
    Header header;
    header.set_name("sequences/s");
    header.set_num_tokens(2);
    ASSERT_TRUE(FromProto(header, Limits{}).ok());
    one.spoil(&header);
    ExpectBadField(FromProto(header, Limits{}).status(), one.field, one.message);
  }
}

// A stored sequence of which only the facts are asked.
class Facts final : public memory::StoredSequence {
 public:
  Facts(memory::StoredInfo info, bool packed) : info_(std::move(info)), packed_(packed) {}
  const memory::StoredInfo& Info() const override { return info_; }
  bool Packed() const override { return packed_; }
  KvRef Keys(int64_t) const override { return {}; }
  KvRef Values(int64_t) const override { return {}; }
  std::span<std::byte> Blocks() const override { return {}; }
  void SetMeanKey(std::vector<Float16>) override {}
  absl::Status CopyIn(std::span<const std::byte>, std::byte*) const override {
    return absl::UnimplementedError("facts");
  }
  absl::Status CopyOut(const std::byte*, std::span<std::byte>) const override {
    return absl::UnimplementedError("facts");
  }
  int64_t StoredBytes() const override { return 0; }

 private:
  const memory::StoredInfo info_;
  const bool packed_;
};

memory::StoredInfo Info() {
  memory::StoredInfo info = *FromProto(GoodHeader(), Model(), Limits{});
  info.layer_indices = {0};
  info.positions = {3, 9};
  info.logical_tokens = 12;
  info.epoch = 5;
  return info;
}

TEST(AfterAppend, ContinuesAtTheLogicalTokens) {
  const auto info = AfterAppend(Facts(Info(), false), {"s", 5, 2, {}}, Limits{});
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->epoch, 6u);
  EXPECT_EQ(info->num_tokens, 4);
  EXPECT_EQ(info->logical_tokens, 14);
  EXPECT_EQ(info->positions, (std::vector<int32_t>{3, 9, 12, 13}));
}

TEST(AfterAppend, TakesPositionsAboveTheLast) {
  const Facts before(Info(), false);
  EXPECT_EQ(AfterAppend(before, {"s", 5, 1, {10}}, Limits{})->positions.back(), 10);
  EXPECT_EQ(AfterAppend(before, {"s", 5, 1, {99}}, Limits{})->logical_tokens, 100);
  ExpectBadField(AfterAppend(before, {"s", 5, 1, {9}}, Limits{}).status(), "header.positions",
                 "got 9, want above the last position 9");
}

TEST(AfterAppend, GivesRaggedHeadsTheirNewTokensAtTheirEnd) {
  memory::StoredInfo info = Info();
  info.lengths = {1, 2};
  const auto after = AfterAppend(Facts(info, false), {"s", 5, 1, {}}, Limits{});
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_TRUE(after->per_head_positions);
  EXPECT_EQ(after->lengths, (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(after->positions, (std::vector<int32_t>{3, 12, -1, 3, 9, 12}));
}

TEST(AfterAppend, RefusesStaleEpochsPackedSequencesAndWhatCannotFit) {
  const absl::Status stale = AfterAppend(Facts(Info(), false), {"s", 4, 1, {}}, Limits{}).status();
  EXPECT_EQ(stale.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(ReasonOf(stale), "EPOCH_MISMATCH");
  const absl::Status packed = AfterAppend(Facts(Info(), true), {"s", 5, 1, {}}, Limits{}).status();
  EXPECT_EQ(packed.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(packed), "SEQUENCE_PACKED");
  Limits small;
  small.store_bytes = 2 * 2 * 3 * 8 * 2 - 1;  // k and v, heads, tokens, dims, f16
  EXPECT_EQ(AfterAppend(Facts(Info(), false), {"s", 5, 1, {}}, small).status().code(),
            absl::StatusCode::kResourceExhausted);
  small.store_bytes += 1;
  EXPECT_TRUE(AfterAppend(Facts(Info(), false), {"s", 5, 1, {}}, small).ok());
}

TEST(AfterAppend, RefusesPositionsBeyondInt32) {
  memory::StoredInfo info = Info();
  info.logical_tokens = 2147483646;
  EXPECT_EQ(AfterAppend(Facts(info, false), {"s", 5, 1, {}}, Limits{})->logical_tokens, 2147483647);
  ExpectBadField(AfterAppend(Facts(info, false), {"s", 5, 2, {}}, Limits{}).status(),
                 "header.num_tokens", "got 2, want 1..1");
}

}  // namespace
}  // namespace kvern::rpc
