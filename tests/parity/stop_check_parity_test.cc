// Scoring ops give up when the bound check fires, and run again once it is unbound.
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

using Op = absl::FunctionRef<absl::Status(Backend&, ScoreView)>;

class StopCheckParity : public ::testing::Test {
 protected:
  StopCheckParity() : keys_(RandomKv(spec_, /*seed=*/1)) {}

  void ExpectStops(Op op) {
    ForEachBackend([&](Backend& backend) {
      GuardedBuffer<float> scores(2 * spec_.tokens);
      const ScoreView view = DenseView(scores.data(), 1, 2, spec_.tokens);
      const AlwaysCancelled stop;
      backend.Bind(&stop);
      EXPECT_EQ(op(backend, view).code(), absl::StatusCode::kCancelled);
      backend.Bind(nullptr);
      EXPECT_TRUE(op(backend, view).ok());
    });
  }

  const HostKvSpec spec_ = {.kv_heads = 2, .tokens = 300, .head_dim = 16};
  const HostKv keys_;
  const std::vector<uint8_t> mask_ = std::vector<uint8_t>(600, 1);
};

TEST_F(StopCheckParity, KeyDiff) {
  ExpectStops([&](Backend& backend, ScoreView scores) {
    return backend.KeyDiff({.keys = keys_.refs(), .alive = MaskOf(spec_, mask_)}, scores);
  });
}

TEST_F(StopCheckParity, MeanKey) {
  std::vector<Float16> mean(32);
  ExpectStops([&](Backend& backend, ScoreView) {
    return backend.MeanKey({.keys = keys_.refs(), .counted = MaskOf(spec_, mask_)},
                           DenseView(mean.data(), 1, 2, 16));
  });
}

TEST_F(StopCheckParity, TriAttention) {
  const std::vector<float> u(2 * 16, 1.0f);
  TriAttentionArgs args;
  args.keys = keys_.refs();
  args.bands = 8;
  args.q_heads = 2;
  args.u = DenseView(u.data(), 1, 2, 1, 16);
  args.w = DenseView(u.data(), 1, 2, 8);
  args.candidates = MaskOf(spec_, mask_);
  ExpectStops(
      [&](Backend& backend, ScoreView scores) { return backend.TriAttention(args, scores); });
}

TEST_F(StopCheckParity, ExpectedAttention) {
  const std::vector<double> moments(2 * 16, 0.1);
  ExpectedAttentionArgs args;
  args.keys = keys_.refs();
  args.values = keys_.refs();
  args.q_heads = 2;
  args.linear = DenseView(moments.data(), 1, 2, 16);
  args.factors = DenseView(moments.data(), 1, 2, 0, 16);
  args.diagonal = DenseView(moments.data(), 1, 2, 16);
  args.counted = MaskOf(spec_, mask_);
  ExpectStops(
      [&](Backend& backend, ScoreView scores) { return backend.ExpectedAttention(args, scores); });
}

TEST_F(StopCheckParity, WindowAttention) {
  const std::vector<float> queries = RandomFloats(2 * 3 * 16, /*seed=*/2);
  WindowAttentionArgs args;
  args.keys = keys_.refs();
  args.queries = DenseView(queries.data(), 1, 2, 3, 16);
  ExpectStops(
      [&](Backend& backend, ScoreView scores) { return backend.WindowAttention(args, scores); });
}

TEST_F(StopCheckParity, RowsOfScores) {
  ExpectStops([&](Backend& backend, ScoreView scores) { return backend.Scale(2.0f, scores); });
  ExpectStops([&](Backend& backend, ScoreView scores) {
    return backend.ZScore(MaskOf(spec_, mask_), scores);
  });
  ExpectStops([&](Backend& backend, ScoreView scores) {
    return backend.ShareRows({{0, 1}}, GroupReduce::kMean, scores);
  });
}

}  // namespace
}  // namespace kvern::support
