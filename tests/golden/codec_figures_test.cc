// The codecs' figures on real caches against those of codec_reference.py (ruling 23).
#include <fstream>

#include "Eigen/Core"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "server/pipeline/codec.h"
#include "server/pipeline/rotation.h"
#include "tests/golden/compare.h"
#include "tests/support/packed_case.h"

namespace kvern::golden {
namespace {

constexpr int64_t kSinks = 4;
constexpr double kAgreement = 0.01;

// ParseCodec refuses keys below 8 bits without rm, which the figures are there to justify: as
// codecs of values they pass.
CodecSpec CodecOf(const std::string& text) {
  const bool mean = text.ends_with("+rm");
  const std::string name = mean ? text.substr(0, text.size() - 3) : text;
  const Role role = name == "kch4" ? Role::kKey : Role::kValue;
  CodecSpec codec = pipeline::ParseCodec(name, role).value();
  if (mean) codec.flags |= kFlagRopeMean;
  return codec;
}

struct CodecFigures {
  double nmse = 0;
  double logit_rmse = 0;  // of keys
};

float ValueAt(const KvRef& ref, int64_t head, int64_t token, int64_t d) {
  BFloat16 value;
  std::memcpy(&value, ref.Address(head, token) + d * ref.strides.dim, sizeof(value));
  return ToFloat(value);
}

class CodecFiguresTest : public GoldenTest {
 protected:
  // Codes and decodes tokens first.. of every row; what comes back has slot token - first.
  void RoundTrip(GoldenSequence& sequence, LayerRefs rows, CodecSpec codec, int64_t first,
                 std::span<const KvRef> decoded) {
    const pipeline::SequenceInput& input = sequence.input();
    const KeepList keep = support::KeepEvery(rows, first, 1);
    const support::PackedCase packed = support::PlanRows(rows, keep, codec);
    std::vector<std::byte> bytes(packed.bytes);
    const RotationTable rotation = pipeline::BuildRotation(input);
    const std::vector<int32_t> coded(input.positions.begin() + first, input.positions.end());
    const RotationTable of_slots = pipeline::BuildRotation(
        sequence.model().rope,
        {.positions = coded, .kv_heads = 0, .tokens = static_cast<int64_t>(coded.size())});
    std::vector<Float16> mean(sequence.Rows() * sequence.model().head_dim);
    const auto mean_view =
        DenseView(mean.data(), input.Layers(), input.KvHeads(), int64_t{sequence.model().head_dim});
    if ((codec.flags & kFlagRopeMean) != 0) {
      const pipeline::TokenMask counted = pipeline::AliveAfter(input, kSinks);
      const absl::Status meant = backend().MeanKey(
          {.keys = rows, .rotation = &rotation, .counted = counted.View()}, mean_view);
      ASSERT_TRUE(meant.ok()) << meant;
    }
    EncodeCounts counts;
    const absl::Status encoded = backend().Encode({.rows = rows,
                                                   .keep = &keep,
                                                   .table = packed.table,
                                                   .mean_key = mean_view,
                                                   .rotation = &rotation,
                                                   .packed = bytes},
                                                  &counts);
    ASSERT_TRUE(encoded.ok()) << encoded;
    const absl::Status done = backend().Decode({.packed = bytes,
                                                .table = packed.table,
                                                .mean_key = mean_view,
                                                .rotation = &of_slots,
                                                .rows = decoded});
    ASSERT_TRUE(done.ok()) << done;
  }

  // Logits of one key row's error under the queries of its group, less each query's mean.
  static double SquaredLogits(GoldenSequence& sequence, int64_t row,
                              const std::vector<double>& error, int64_t coded);

  CodecFigures Measure(GoldenSequence& sequence, Role role, const std::string& text) {
    const CodecSpec codec = CodecOf(text);
    const int64_t first = pipeline::EntryOf(codec.id).code_bits < 8 ? kSinks : 0;
    pipeline::SequenceInput& input = sequence.input();
    const std::vector<KvRef>& rows = role == Role::kKey ? input.keys : input.values;
    const int64_t heads = input.KvHeads(), dims = rows[0].head_dim, coded = input.Tokens() - first;
    std::vector<BFloat16> memory(sequence.Rows() * coded * dims);
    std::vector<KvRef> decoded;
    for (int64_t layer = 0; layer < input.Layers(); ++layer) {
      decoded.push_back(DenseKvRef(DType::kBF16, memory.data() + layer * heads * coded * dims,
                                   heads, coded, dims));
    }
    RoundTrip(sequence, rows, codec, first, decoded);
    double error = 0, norm = 0, logits = 0;
    for (int64_t row = 0; row < sequence.Rows(); ++row) {
      const int64_t layer = row / heads, head = row % heads;
      std::vector<double> errors(coded * dims);
      for (int64_t i = 0; i < coded * dims; ++i) {
        const double x = ValueAt(rows[layer], head, first + i / dims, i % dims);
        errors[i] = ValueAt(decoded[layer], head, i / dims, i % dims) - x;
        error += errors[i] * errors[i];
        norm += x * x;
      }
      if (role == Role::kKey) {
        logits += SquaredLogits(sequence, row, errors, coded);
      }
    }
    const double count = static_cast<double>(input.Layers() * sequence.model().q_heads *
                                             sequence.side().window * coded);
    return {error / norm, std::sqrt(logits / count)};
  }
};

double CodecFiguresTest::SquaredLogits(GoldenSequence& sequence, int64_t row,
                                       const std::vector<double>& error, int64_t coded) {
  using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  // [layers, q_heads, window, head_dim]: a group's queries lie side by side.
  const std::vector<float>& queries = sequence.side().q_window;
  const int64_t dims = sequence.model().head_dim;
  const int64_t of_group = static_cast<int64_t>(queries.size()) / dims / sequence.Rows();
  Rows group(of_group, dims);
  std::copy_n(queries.begin() + row * group.size(), group.size(), group.data());
  const Eigen::Map<const Rows> errors(error.data(), coded, dims);
  const Rows logits = group * errors.transpose() / std::sqrt(static_cast<double>(dims));
  return (logits.colwise() - logits.rowwise().mean()).squaredNorm();
}

nlohmann::json Reference() {
  std::ifstream file(std::string(KVERN_TEST_DATA) + "/golden/codec-reference.json");
  return nlohmann::json::parse(file);
}

void ExpectAgrees(const std::string& what, double got, double want) {
  Figures::Figure& figure = Figures::Get().Of(what);
  figure.limit = kAgreement;
  figure.unit = "relative";
  figure.worst = std::max(figure.worst, std::fabs(got / want - 1));
  ++figure.rows;
  EXPECT_NEAR(got / want, 1, kAgreement) << what << ": got " << got << ", want " << want;
}

TEST_P(CodecFiguresTest, AgreeWithTheReferenceWithinOnePercent) {
  const nlohmann::json reference = Reference();
  for (const std::string cache : {"pride-1024", "qwen-512"}) {
    const auto sequence = GoldenSequence::Real(cache);
    for (const std::string role : {"k", "v"}) {
      ASSERT_FALSE(reference[cache][role].empty());
      for (const auto& [codec, want] : reference[cache][role].items()) {
        const Role of = role == "k" ? Role::kKey : Role::kValue;
        const CodecFigures got = Measure(*sequence, of, codec);
        const std::string what = absl::StrCat(cache, " codec ", role, " ", codec);
        ExpectAgrees(what + " nmse", got.nmse, want["nmse"]);
        if (of == Role::kKey) ExpectAgrees(what + " logit", got.logit_rmse, want["logit_rmse"]);
      }
    }
  }
}

TEST_P(CodecFiguresTest, RemovingTheMeanKeyLowersTheLogitErrorBelowEightBits) {
  for (const std::string cache : {"pride-1024", "qwen-512"}) {
    const auto sequence = GoldenSequence::Real(cache);
    for (const std::string codec : {"lm4", "sfv3"}) {
      EXPECT_LT(Measure(*sequence, Role::kKey, codec + "+rm").logit_rmse,
                Measure(*sequence, Role::kKey, codec).logit_rmse)
          << cache << " " << codec;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, CodecFiguresTest, ::testing::ValuesIn(EveryBackend()), NameOf);

TEST(CodecPolicy, RefusesFourBitKeysWithTheirMean) {
  pipeline::Policy policy;
  policy.k_codec = "lm4";
  const auto resolved = pipeline::Resolve(
      policy, {.source = pipeline::Source::kInline, .inputs = pipeline::kNeedsRope});
  EXPECT_EQ(resolved.status().code(), absl::StatusCode::kInvalidArgument);
  policy.k_codec = "lm4+rm";
  EXPECT_TRUE(pipeline::Resolve(
                  policy, {.source = pipeline::Source::kInline, .inputs = pipeline::kNeedsRope})
                  .ok());
}

}  // namespace
}  // namespace kvern::golden
