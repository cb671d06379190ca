// A packed file may say anything: each lie is refused by name before a byte is written.
#include <functional>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/pipeline/packed_sequence.h"

namespace kvern::pipeline {
namespace {

PolicyWords Words() {
  PolicyWords words;
  words.budget = TokenBudget{150};
  words.k_codec = "i8t+rm";
  words.v_codec = "lm4";
  return words;
}

// Table: keys raw [4 sinks], i8t [64, 64, 18] per head, then values raw [4], lm4 [64, 64, 18].
class UnpackTest : public testing::Test {
 protected:
  UnpackTest()
      : packed_(F32({.layers = 2, .kv_heads = 2, .tokens = 200, .head_dim = 16}), Words()),
        target_(packed_.sequence.input(), 150) {}

  absl::Status Run() {
    return Unpack(*packed_.backend, packed_.sequence.model(), packed_.packed,
                  packed_.plan.kept_positions, target_.ToUnpack());
  }
  void ExpectRefused(const std::string& word) {
    const absl::Status status = Run();
    ASSERT_FALSE(status.ok()) << word;
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status.ToString();
    EXPECT_NE(std::string(status.message()).find(word), std::string::npos) << status.ToString();
    EXPECT_EQ(target_.keys().Get(0, 0, 0, 0), 0.0f) << "nothing was written";
  }

  PackedSequence packed_;
  DenseTarget target_;
};

TEST_F(UnpackTest, TakesWhatPackMade) {
  EXPECT_TRUE(Run().ok()) << Run().ToString();
  EXPECT_NE(target_.keys().Get(0, 0, 0, 0), 0.0f);
}

TEST_F(UnpackTest, RefusesEveryWrongColumn) {
  const struct {
    const char* word;
    std::function<void(PackedRow&)> lie;
  } kLies[] = {
      {"layer", [](PackedRow& row) { row.layer = 7; }},
      {"layer", [](PackedRow& row) { row.layer = -1; }},
      {"kv_head", [](PackedRow& row) { row.kv_head = int64_t{1} << 40; }},
      {"role", [](PackedRow& row) { row.role = 2; }},
      {"codec", [](PackedRow& row) { row.codec = 8; }},
      {"codec", [](PackedRow& row) { row.codec = 257; }},
      {"codec", [](PackedRow& row) { row.codec = -1; }},
      {"flags", [](PackedRow& row) { row.flags = 4; }},
      {"flags", [](PackedRow& row) { row.flags = -1; }},
      {"first_slot", [](PackedRow& row) { row.first_slot += 1; }},
      {"first_slot", [](PackedRow& row) { row.first_slot = INT64_MIN; }},
      {"tokens", [](PackedRow& row) { row.tokens = 0; }},
      {"tokens", [](PackedRow& row) { row.tokens = -5; }},
      {"tokens", [](PackedRow& row) { row.tokens = 65; }},
      {"tokens", [](PackedRow& row) { row.tokens = INT64_MAX; }},
      {"byte_offset", [](PackedRow& row) { row.byte_offset += 16; }},
      {"byte_offset", [](PackedRow& row) { row.byte_offset = -128; }},
      {"byte_offset", [](PackedRow& row) { row.byte_offset = INT64_MAX - 127; }},
      {"byte_offset", [](PackedRow& row) { row.byte_offset -= 128; }},
  };
  const std::vector<PackedRow> honest = packed_.packed.table;
  for (size_t at = 0; at < honest.size(); ++at) {
    for (const auto& lie : kLies) {
      SCOPED_TRACE(testing::Message() << "row " << at);
      packed_.packed.table = honest;
      lie.lie(packed_.packed.table[at]);
      ExpectRefused(lie.word);
    }
  }
}

TEST_F(UnpackTest, RefusesFlagsThatTheCodecOrRoleDoesNotTake) {
  const std::vector<PackedRow> honest = packed_.packed.table;
  for (PackedRow& row : packed_.packed.table) {
    const PackedRow before = row;
    const bool is_key = row.role == 0;
    if (static_cast<CodecId>(row.codec) == CodecId::kLm4) {
      row.flags = 0;  // lm4 rotates
      ExpectRefused("flags");
    }
    if (static_cast<CodecId>(row.codec) == CodecId::kRaw16 || !is_key) {
      row.flags = before.flags | kFlagRopeMean;
      ExpectRefused("flags");
    }
    row = before;
  }
}

TEST_F(UnpackTest, RefusesCodecsThatTheRoleOrTheNumberOfTokensDoesNotTake) {
  for (PackedRow& row : packed_.packed.table) {
    const PackedRow before = row;
    const bool is_key = row.role == 0;
    row.codec = static_cast<int64_t>(is_key ? CodecId::kSfv2 : CodecId::kKch4);
    row.flags = is_key ? kFlagHadamard : 0;
    ExpectRefused("for role");
    if (is_key && row.tokens < 64) {
      row.codec = static_cast<int64_t>(CodecId::kKch4);
      row.flags = 0;
      ExpectRefused("tokens");
    }
    row = before;
  }
}

TEST_F(UnpackTest, RefusesBlocksThatOverlap) {
  packed_.packed.table[2].byte_offset = packed_.packed.table[1].byte_offset;
  ExpectRefused("byte_offset");
}

TEST_F(UnpackTest, RefusesATableThatIsShortOrLong) {
  const std::vector<PackedRow> honest = packed_.packed.table;
  packed_.packed.table.pop_back();
  ExpectRefused("one more");
  packed_.packed.table = honest;
  packed_.packed.table.push_back(honest.back());
  ExpectRefused("rows");
  packed_.packed.table.clear();
  ExpectRefused("one more");
}

TEST_F(UnpackTest, RefusesBytesThatEndEarly) {
  packed_.packed.blocks.resize(packed_.packed.table.back().byte_offset + 1);
  ExpectRefused("byte_offset");
  packed_.packed.blocks.clear();
  ExpectRefused("byte_offset");
}

TEST_F(UnpackTest, RefusesAMeanKeyOfAnotherSize) {
  packed_.packed.mean_key.pop_back();
  ExpectRefused("packed_mu");
  packed_.packed.mean_key.clear();
  ExpectRefused("packed_mu");
}

TEST_F(UnpackTest, RefusesPositionsThatAreNotRowsInOrder) {
  const std::vector<int32_t> honest = packed_.plan.kept_positions;
  std::vector<int32_t>& positions = packed_.plan.kept_positions;
  positions.pop_back();
  ExpectRefused("positions");
  positions = honest;
  positions[5] = positions[4];
  ExpectRefused("positions");
  positions = honest;
  positions[5] = -2;
  ExpectRefused("positions");
  positions = honest;
  positions[5] = -1;
  ExpectRefused("positions");
}

TEST_F(UnpackTest, RefusesATargetOfAnotherShape) {
  packed_.packed.dtype = DType::kF16;
  ExpectRefused("dtype");
  packed_.packed.dtype = DType::kF32;
  packed_.sequence.model().head_dim = 24;
  ExpectRefused("head_dim");
  packed_.sequence.model().head_dim = 16;
  DenseTarget small(packed_.sequence.input(), 149);
  const absl::Status status = Unpack(*packed_.backend, packed_.sequence.model(), packed_.packed,
                                     packed_.plan.kept_positions, small.ToUnpack());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(UnpackTest, AsksForRopeToAddTheMeanKeyBack) {
  packed_.sequence.model().rope.inv_freq.clear();
  EXPECT_EQ(ReasonOf(Run()), "ROPE_UNKNOWN");
}

}  // namespace
}  // namespace kvern::pipeline
