// The result file, tensor by tensor (architecture.md 3, ruling 13), and the way back.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "tests/integration/command_line/command_line.h"
#include "tests/unit/client/small_cache.h"

namespace kvern {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

using Shape = std::vector<int64_t>;

class CommandLineResultFile : public CommandLineTest {};

std::vector<std::string> Names(const TensorFile& file) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : file.Contents().tensors) names.push_back(name);
  return names;
}

void ExpectTensor(const TensorFile& file, const std::string& name, const std::string& dtype,
                  const Shape& shape) {
  EXPECT_EQ(file.At(name).dtype, dtype) << name;
  EXPECT_EQ(file.At(name).shape, shape) << name;
}

// Rows of [8, heads]: ascending slots, -1 fills behind the count, positions of the source's tokens.
void ExpectKeptRows(const TensorFile& file, int64_t source_tokens) {
  const std::vector<int32_t> counts = file.Ints("kept_counts");
  const std::vector<int32_t> kept = file.Ints("kept_indices");
  const std::vector<int32_t> positions = file.Ints("positions");
  const int64_t max_kept = *std::max_element(counts.begin(), counts.end());
  ASSERT_EQ(std::ssize(kept), std::ssize(counts) * max_kept);
  ASSERT_EQ(kept, positions);  // the sample caches are whole: slot i is at position i
  for (int64_t row = 0; row < std::ssize(counts); ++row) {
    for (int64_t slot = 0; slot < max_kept; ++slot) {
      const int32_t token = kept[row * max_kept + slot];
      if (slot >= counts[row]) {
        ASSERT_EQ(token, -1);
      } else {
        ASSERT_GT(token, slot == 0 ? -1 : kept[row * max_kept + slot - 1]);
        ASSERT_LT(token, source_tokens);
      }
    }
  }
}

TEST_F(CommandLineResultFile, HoldsWhatADenseResultNeeds) {
  const Result result =
      Compress(kPride, "out",
               {"--local", "--keep-ratio", "0.5", "--scorer", "key_norm", "--budgeter", "pyramid"});
  const TensorFile& file = *result.file;
  const std::vector<int32_t> counts = file.Ints("kept_counts");
  ASSERT_EQ(counts.size(), 8 * 3);
  const int64_t most = *std::max_element(counts.begin(), counts.end());
  EXPECT_THAT(Names(file),
              UnorderedElementsAre("k", "v", "positions", "kept_indices", "kept_counts",
                                   // carried: statements that still hold
                                   "layer_indices", "inv_freq", "token_ids", "q_window"));
  ExpectTensor(file, "k", "BF16", {8, 3, most, 64});
  ExpectTensor(file, "v", "BF16", {8, 3, most, 64});
  ExpectTensor(file, "positions", "I32", {8, 3, most});
  ExpectTensor(file, "kept_indices", "I32", {8, 3, most});
  ExpectTensor(file, "kept_counts", "I32", {8, 3});
  ExpectKeptRows(file, 1024);
  EXPECT_LT(*std::min_element(counts.begin(), counts.end()), most);  // some rows are filled up
  EXPECT_EQ(file.Contents().Metadata("format"), "kvern-cache/1");
  EXPECT_EQ(file.Contents().Metadata("logical_tokens"), "1024");
  const TensorFile source(kPride);
  EXPECT_EQ(file.Contents().Metadata("model"), source.Contents().Metadata("model"));
  EXPECT_TRUE(file.Bytes("layer_indices") == source.Bytes("layer_indices"));
}

TEST_F(CommandLineResultFile, CopiesKeptTokensBitForBit) {
  const Result result = Compress(kQwen, "out", {"--local", "--policy", "evict50"});
  const TensorFile source(kQwen);
  const std::vector<int32_t> kept = result.file->Ints("kept_indices");
  for (const char* role : {"k", "v"}) {
    const std::vector<uint16_t> before = source.Values<uint16_t>(role);
    const std::vector<uint16_t> after = result.file->Values<uint16_t>(role);
    ASSERT_EQ(after.size(), kept.size() * 64);
    for (size_t i = 0; i < kept.size(); ++i) {
      const auto from = before.begin() + (i / 256 * 512 + kept[i]) * 64;
      ASSERT_TRUE(std::equal(from, from + 64, after.begin() + i * 64)) << role << " " << i;
    }
  }
}

TEST_F(CommandLineResultFile, AddsScoresWhenAsked) {
  const Result result = Compress(kQwen, "out", {"--local", "--with-scores"});
  ExpectTensor(*result.file, "scores", "F32", {8, 2, 512});
  const std::vector<float> scores = result.file->Floats("scores");
  for (size_t row = 0; row < scores.size(); row += 512) {
    for (int sink = 0; sink < 4; ++sink) EXPECT_TRUE(std::isnan(scores[row + sink]));
    EXPECT_TRUE(std::isnan(scores[row + 511]));
    EXPECT_GT(std::count_if(scores.begin() + row, scores.begin() + row + 512,
                            [](float score) { return std::isfinite(score); }),
              100);
  }
}

// Rows of the table: layer, kv_head, role, codec, flags, first_slot, tokens, byte_offset.
TEST_F(CommandLineResultFile, TilesEveryRowOfAPackedResult) {
  const Result result = Compress(kPride, "out", {"--local", "--calibration", kPrideCalibration});
  const TensorFile& file = *result.file;
  EXPECT_FALSE(file.Has("k"));
  EXPECT_FALSE(file.Has("v"));
  ExpectTensor(file, "packed_mu", "F16", {8, 3, 64});
  ExpectTensor(file, "packed", "U8", {std::ssize(file.Bytes("packed"))});
  const std::vector<int64_t> table = file.Values<int64_t>("packed_table");
  ExpectTensor(file, "packed_table", "I64", {std::ssize(table) / 8, 8});
  ExpectKeptRows(file, 1024);
  const std::vector<int32_t> counts = file.Ints("kept_counts");
  std::vector<int64_t> covered(8 * 3 * 2);
  int64_t codec_of_role[2] = {0, 0};
  for (size_t at = 0; at < table.size(); at += 8) {
    const int64_t layer = table[at], head = table[at + 1], role = table[at + 2];
    ASSERT_TRUE(layer >= 0 && layer < 8 && head >= 0 && head < 3 && (role == 0 || role == 1));
    int64_t& next = covered[(layer * 3 + head) * 2 + role];
    ASSERT_EQ(table[at + 5], next);  // slots ascend without a gap
    ASSERT_GT(table[at + 6], 0);
    ASSERT_LT(table[at + 7], std::ssize(file.Bytes("packed")));
    if (next == 0 && role == 1) {
      EXPECT_EQ(table[at + 6], 4);  // sinks have a raw row below 8 bits
    }
    if (next > 0) codec_of_role[role] = table[at + 3];
    next += table[at + 6];
  }
  for (size_t row = 0; row < covered.size(); ++row) EXPECT_EQ(covered[row], counts[row / 2]);
  EXPECT_NE(codec_of_role[0], codec_of_role[1]);  // i8t and lm4
}

TEST_F(CommandLineResultFile, CarriesTensorsAndKeysItDoesNotKnow) {
  const SmallCache cache(64);
  formats::Safetensors input = cache.File();
  const std::string note = "any bytes";
  input.tensors["my_note"] = {"U8", {9}, std::as_bytes(std::span(note))};
  input.metadata["my_key"] = "my value";
  const Result result = Compress(Write("in", input), "out",
                                 {"--local", "--keep-ratio", "0.5", "--scorer", "keydiff"});
  const formats::TensorEntry carried = result.file->At("my_note");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(carried.bytes.data()), carried.bytes.size()),
            note);
  EXPECT_EQ(result.file->Contents().Metadata("my_key"), "my value");
  ExpectTensor(*result.file, "k", "F32", {2, 2, 32, 8});
}

TEST_F(CommandLineResultFile, UnpacksToTheSourceWithinTheCodecsError) {
  Compress(kPride, "packed", {"--local", "--policy", "safe"});
  Kvern({"unpack", PathOf("packed"), "-o", PathOf("dense")});
  const TensorFile source(kPride), dense(PathOf("dense"));
  ExpectTensor(dense, "k", "BF16", {8, 3, 1024, 64});
  EXPECT_FALSE(dense.Has("packed") || dense.Has("packed_table") || dense.Has("packed_mu"));
  const std::vector<float> want = source.Floats("v"), got = dense.Floats("v");
  ASSERT_EQ(want.size(), got.size());
  for (size_t token = 0; token < want.size(); token += 64) {
    float largest = 0;
    for (size_t d = 0; d < 64; ++d) largest = std::max(largest, std::abs(want[token + d]));
    for (size_t d = 0; d < 64; ++d) {
      // Half a step of 127 levels, a scale of 11 bits, a result of 8.
      const float bound = largest / 254 * 1.01F + largest / 2048 + std::abs(want[token + d]) / 256;
      ASSERT_LE(std::abs(want[token + d] - got[token + d]), bound) << token << " " << d;
    }
  }
  // 8-bit codes of a Gaussian have 3.4e-5 of its power as error (quantization.md 5.2); keys are
  // larger than what is coded of them, their distance to the mean.
  EXPECT_LT(NormalizedError(source.Floats("k"), dense.Floats("k")), 1e-4);
}

TEST_F(CommandLineResultFile, ReportsTheErrorThatUnpackingShows) {
  const Result result =
      Compress(kPride, "packed", {"--local", "--codec", "k=lm4+rm,v=lm4", "--sink", "0"});
  Kvern({"unpack", PathOf("packed"), "-o", PathOf("dense")});
  const TensorFile source(kPride), dense(PathOf("dense"));
  // Sixteen levels for a Gaussian have 1 % of its power as error (quantization.md 5.1).
  const double v_error = NormalizedError(source.Floats("v"), dense.Floats("v"));
  EXPECT_GT(v_error, 0.008);
  EXPECT_LT(v_error, 0.011);
  EXPECT_NEAR(result.said["quality"]["v_error"].get<double>(), v_error, 0.1 * v_error);
}

// quantization.md 5.2 for the values; keys are larger than what is coded of them.
TEST_F(CommandLineResultFile, GivesEveryCodecBackFromAServerWithinItsError) {
  const struct {
    const char* k;
    const char* v;
    double k_most;
    double v_least;
    double v_most;
  } kCases[] = {{"sfv3+rm", "sfv3", .01, .023, .028},
                {"sfv3+rm", "sfv2", .01, .09, .125},
                {"i4t+rm", "i4t", .005, .007, .011},
                {"kch4", "H+i4t", .005, .007, .009},
                {"H+fp8t+rm", "fp8t", 3e-4, 5e-4, 8e-4}};
  for (const auto& codec : kCases) {
    SCOPED_TRACE(absl::StrCat(codec.k, " ", codec.v));
    const Result result =
        Compress(kPride, "packed",
                 Words{"--codec", absl::StrCat("k=", codec.k, ",v=", codec.v)} + AtServer());
    Kvern({"unpack", PathOf("packed"), "-o", PathOf("dense")});
    const TensorFile source(kPride), dense(PathOf("dense"));
    const double k_error = NormalizedError(source.Floats("k"), dense.Floats("k"));
    const double v_error = NormalizedError(source.Floats("v"), dense.Floats("v"));
    EXPECT_GT(k_error, 0);
    EXPECT_LT(k_error, codec.k_most);
    EXPECT_GT(v_error, codec.v_least);
    EXPECT_LT(v_error, codec.v_most);
    EXPECT_NEAR(result.said["quality"]["v_error"].get<double>(), v_error, 0.1 * v_error);
    EXPECT_EQ(result.said["resolved"]["k_codec"], codec.k);
    EXPECT_EQ(result.said["resolved"]["v_codec"], codec.v);
  }
}

TEST_F(CommandLineResultFile, KeepsRawRolesAndRawSinksBitForBit) {
  Compress(kQwen, "packed", {"--local", "--codec", "k=raw16,v=lm4"});
  Kvern({"unpack", PathOf("packed"), "-o", PathOf("dense")});
  const TensorFile source(kQwen), dense(PathOf("dense"));
  EXPECT_TRUE(source.Bytes("k") == dense.Bytes("k"));
  const std::vector<uint16_t> before = source.Values<uint16_t>("v");
  const std::vector<uint16_t> after = dense.Values<uint16_t>("v");
  ASSERT_EQ(before.size(), after.size());
  for (size_t row = 0; row < before.size(); row += 512 * 64) {
    ASSERT_TRUE(
        std::equal(before.begin() + row, before.begin() + row + 4 * 64, after.begin() + row));
  }
}

TEST_F(CommandLineResultFile, UnpacksAsTheStoreDecodes) {
  const nlohmann::json put =
      KvernJson(Words{"store", "put", kQwen, "--name", "whole"} + AtServer());
  const auto client = client::Client::Connect(Server().Address());
  ASSERT_TRUE(client.ok()) << client.status();
  v1::CompressCacheRequest request;
  request.set_model(put["model"].get<std::string>());
  request.mutable_policy()->set_preset("balanced");
  request.mutable_policy()->set_placement(v1::PLACEMENT_TO_STORE);
  v1::SequenceRequest* sequence = request.add_sequences();
  sequence->set_sequence_id("small");
  sequence->set_num_logical_tokens(512);
  sequence->mutable_stored()->set_sequence("sequences/whole");
  const auto response = client->Compress(request);
  ASSERT_TRUE(response.ok()) << response.status();
  ASSERT_TRUE(client::SequenceStatus(response->results(0)).ok());
  const std::string stored = response->results(0).stored_sequence();
  Kvern(Words{"store", "get", stored, "-o", PathOf("packed")} + AtServer());
  Kvern(Words{"store", "get", stored, "-o", PathOf("decoded"), "--decode"} + AtServer());
  Kvern({"unpack", PathOf("packed"), "-o", PathOf("unpacked")});
  const TensorFile unpacked(PathOf("unpacked")), decoded(PathOf("decoded"));
  ASSERT_FALSE(unpacked.Bytes("k").empty());
  for (const char* name : {"k", "v", "positions", "kept_counts", "layer_indices"}) {
    EXPECT_TRUE(unpacked.Bytes(name) == decoded.Bytes(name)) << name;
  }
  Kvern(Words{"store", "delete", "whole"} + AtServer());
  Kvern(Words{"store", "delete", stored} + AtServer());
  EXPECT_EQ(KvernJson(Words{"store"} + AtServer())["used_bytes"], 0);
}

TEST_F(CommandLineResultFile, KeepsEverythingWithinTheBudget) {
  const SmallCache cache(20);
  const Result result = Compress(Write("in", cache.File()), "out",
                                 {"--local", "--budget-tokens", "20", "--scorer", "key_norm"});
  EXPECT_EQ(result.said["outcome"], "OUTCOME_NOOP");
  EXPECT_THAT(result.file->Ints("kept_counts"), Each(20));
  const TensorFile source(PathOf("in"));
  EXPECT_TRUE(source.Bytes("k") == result.file->Bytes("k"));
  EXPECT_TRUE(source.Bytes("v") == result.file->Bytes("v"));
}

}  // namespace
}  // namespace kvern
