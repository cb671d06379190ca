// Scorers as single ops of the backend, with random calibrations: their values cost nothing.
#include <algorithm>
#include <memory>

#include "client/cli/bench/ops.h"

namespace kvern::bench {
namespace {

template <class T>
using Shared = std::shared_ptr<const std::vector<T>>;
Shared<float> Floats(int64_t count) {
  return std::make_shared<const std::vector<float>>(NormalFloats(count, /*seed=*/5));
}
Shared<double> Doubles(int64_t count) {
  return std::make_shared<const std::vector<double>>(NormalDoubles(count, /*seed=*/6));
}

int64_t KeysToScores(const Setting& at) { return at.shape().KeyBytes() + at.shape().ScoreBytes(); }

}  // namespace

absl::StatusOr<PreparedOp> PrepareKeyNorm(const Setting& at) {
  return PreparedOp{[at] { return at.backend->RowNorms(at.layer->keys.refs(), at.layer->Out()); },
                    KeysToScores(at)};
}

absl::StatusOr<PreparedOp> PrepareKeyDiff(const Setting& at) {
  return PreparedOp{
      [at] {
        const Layer& layer = *at.layer;
        return at.backend->KeyDiff({layer.keys.refs(), &layer.rotation, layer.All()}, layer.Out());
      },
      KeysToScores(at) + at.shape().AngleBytes()};
}

absl::StatusOr<PreparedOp> PrepareTriAttention(const Setting& at) {
  const int64_t head_dim = at.shape().head_dim, bands = at.shape().Bands(), q_heads = at.q_heads;
  const Shared<float> u = Floats(q_heads * head_dim), w = Floats(q_heads * bands);
  return PreparedOp{[=] {
                      TriAttentionArgs args;
                      args.keys = at.layer->keys.refs();
                      args.bands = static_cast<int32_t>(bands);
                      args.q_heads = static_cast<int32_t>(q_heads);
                      args.u = DenseView(u->data(), int64_t{1}, q_heads, int64_t{1}, head_dim);
                      args.w = DenseView(w->data(), int64_t{1}, q_heads, bands);
                      args.candidates = at.layer->All();
                      return at.backend->TriAttention(args, at.layer->Out());
                    },
                    KeysToScores(at)};
}

absl::StatusOr<PreparedOp> PrepareExpectedAttention(const Setting& at) {
  constexpr int64_t kRank = 8;
  const int64_t head_dim = at.shape().head_dim, q_heads = at.q_heads;
  const Shared<double> linear = Doubles(q_heads * head_dim), diagonal = linear;
  const Shared<double> factors = Doubles(q_heads * kRank * head_dim);
  return PreparedOp{[=] {
                      ExpectedAttentionArgs args;
                      args.keys = at.layer->keys.refs();
                      args.values = at.layer->values.refs();
                      args.q_heads = static_cast<int32_t>(q_heads);
                      args.rank = kRank;
                      args.linear = DenseView(linear->data(), int64_t{1}, q_heads, head_dim);
                      args.factors =
                          DenseView(factors->data(), int64_t{1}, q_heads, kRank, head_dim);
                      args.diagonal = DenseView(diagonal->data(), int64_t{1}, q_heads, head_dim);
                      args.counted = at.layer->All();
                      args.log = true;
                      return at.backend->ExpectedAttention(args, at.layer->Out());
                    },
                    KeysToScores(at) + at.shape().KeyBytes()};
}

absl::StatusOr<PreparedOp> PrepareSnapKv(const Setting& at) {
  const int64_t window = std::min<int64_t>(32, at.shape().tokens / 2);
  const Shared<float> queries = Floats(at.q_heads * window * at.shape().head_dim);
  return PreparedOp{[=] {
                      WindowAttentionArgs args;
                      args.keys = at.layer->keys.refs();
                      args.queries = DenseView(queries->data(), int64_t{1}, at.q_heads, window,
                                               at.shape().head_dim);
                      return at.backend->WindowAttention(args, at.layer->Out());
                    },
                    KeysToScores(at)};
}

absl::StatusOr<PreparedOp> PrepareMeanKey(const Setting& at) {
  const int64_t kv_heads = at.shape().kv_heads, head_dim = at.shape().head_dim;
  const auto mean = std::make_shared<std::vector<Float16>>(kv_heads * head_dim);
  return PreparedOp{[=] {
                      const Layer& layer = *at.layer;
                      return at.backend->MeanKey(
                          {layer.keys.refs(), &layer.rotation, layer.All()},
                          DenseView(mean->data(), int64_t{1}, kv_heads, head_dim));
                    },
                    at.shape().KeyBytes() + at.shape().AngleBytes()};
}

}  // namespace kvern::bench
