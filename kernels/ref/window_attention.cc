// The last queries vote for what they read: softmax attention, averaged, smoothed over tokens.
#include "kernels/ref/window_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/exp_float.h"
#include "kernels/base/math.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/centred_keys.h"
#include "kernels/ref/group_scores.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Attention of one query to the tokens it sees. Keys are centred: what that takes off every dot of
// a query is one constant, which its softmax does not see.
struct Attention {
  std::vector<float> exponentials;  // [visible] e^(logit - largest of the tile); NaN: no finite dot
  std::vector<double> weights;      // [tiles] what one of the tile is worth as a probability

  // sum plus the share of one token, in one rounding.
  double AddShare(int64_t token, double sum) const {
    return std::fma(double{exponentials[token]}, weights[token / kTileTokens], sum);
  }
};

struct TileSoftMax {
  float largest;  // dot
  double sum;     // of the exponentials
};

// Turns the dots of a tile into exponentials.
TileSoftMax ExponentialsOf(std::span<float> dots, float scale) {
  float largest = -std::numeric_limits<float>::infinity();
  for (const float dot : dots) {
    if (std::isfinite(dot) && dot > largest) largest = dot;
  }
  TokenSum sum;
  for (size_t i = 0; i < dots.size(); ++i) {
    const bool finite = std::isfinite(dots[i]);
    dots[i] = finite ? ExpFloat((dots[i] - largest) * scale) : NoScore();
    if (finite) sum.Add(static_cast<int64_t>(i), double{dots[i]});
  }
  return {largest, sum.Total()};
}

// [tiles] probability of a token whose exponential is 1.
std::vector<double> WeightsOf(const std::vector<TileSoftMax>& tiles, double scale) {
  double largest = -kInfinity;
  for (const TileSoftMax& tile : tiles) {
    if (tile.largest > largest) largest = tile.largest;
  }
  std::vector<double> weights;
  double sum = 0;
  for (const TileSoftMax& tile : tiles) {
    weights.push_back(Exp((tile.largest - largest) * scale));
    sum = std::fma(tile.sum, weights.back(), sum);
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

absl::StatusOr<Attention> AttentionOf(const StopCheck* stop, CentredKeys& keys,
                                      const std::vector<float>& query, int64_t visible) {
  const auto head_dim = static_cast<int64_t>(query.size());
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  Attention attention;
  std::vector<float>& dots = attention.exponentials;
  dots.resize(visible);
  for (int64_t token = 0; token < visible; ++token) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
    keys.Load(token);
    dots[token] = LaneDot(keys.centred(), query.data(), head_dim);
  }
  std::vector<TileSoftMax> tiles;
  for (int64_t first = 0; first < visible; first += kTileTokens) {
    const int64_t count = std::min(kTileTokens, visible - first);
    const std::span<float> tile(dots.data() + first, static_cast<size_t>(count));
    tiles.push_back(ExponentialsOf(tile, static_cast<float>(scale)));
  }
  attention.weights = WeightsOf(tiles, scale);
  return attention;
}

// Window of `width` tokens around each; outside is 0 for the average, nothing for the maximum.
std::vector<double> Pooled(const WindowAttentionArgs& args, const std::vector<double>& row) {
  const auto tokens = static_cast<int64_t>(row.size());
  const int64_t reach = args.pool_width / 2;
  std::vector<double> pooled(row.size());
  for (int64_t token = 0; token < tokens; ++token) {
    double sum = 0;
    double largest = -kInfinity;
    for (int64_t near = token - reach; near <= token + reach; ++near) {
      // What has no attention to share does not take its neighbours' away.
      if (near < 0 || near >= tokens || std::isnan(row[near])) continue;
      sum += row[near];
      largest = row[near] > largest ? row[near] : largest;
    }
    const double mean = sum / static_cast<double>(args.pool_width);
    pooled[token] = args.pool == PoolKind::kAverage ? mean : largest;
    if (std::isnan(row[token])) pooled[token] = kNaN;
  }
  return pooled;
}

absl::Status ScoreHead(const HeadProblem& problem, const WindowAttentionArgs& args,
                       ScoreView scores) {
  const auto [stop, layer, head] = problem;
  const KvRef& ref = args.keys[layer];
  const int64_t tokens = TokensOf(ref, head, scores.shape[2]);
  const int64_t window = args.queries.shape[2];
  const int64_t prefix = tokens > window ? tokens - window : 0;
  const int64_t group_size = args.queries.shape[1] / scores.shape[1];
  CentredKeys keys(ref, head, tokens, /*mask=*/nullptr);
  GroupScores group(args.group, prefix);
  for (int64_t q_head = head * group_size; q_head < (head + 1) * group_size && prefix > 0;
       ++q_head) {
    std::vector<double> row(prefix, 0.0);
    for (int64_t i = 0; i < window; ++i) {
      const float* from = args.queries.At(layer, q_head, i);
      std::vector<float> query(ref.head_dim);
      for (int32_t d = 0; d < ref.head_dim; ++d) query[d] = from[d * args.queries.stride[3]];
      KVERN_ASSIGN_OR_RETURN(const Attention attention,
                             AttentionOf(stop, keys, query, prefix + i + 1));
      for (int64_t token = 0; token < prefix; ++token)
        row[token] = attention.AddShare(token, row[token]);
    }
    for (double& share : row) share /= static_cast<double>(window);
    group.Add(Pooled(args, row));
  }
  for (int64_t token = 0; token < scores.shape[2]; ++token) {
    scores(layer, head, token) = token < prefix ? ScoreFrom(group.Score(token)) : NoScore();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WindowAttention(const StopCheck* stop, const WindowAttentionArgs& args,
                             ScoreView scores) {
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(ScoreHead({stop, layer, head}, args, scores));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
