// The last queries vote for what they read: softmax attention, averaged, smoothed over tokens.
#include "kernels/ref/window_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/centred_keys.h"
#include "kernels/ref/group_scores.h"
#include "kernels/ref/rows.h"
#include "kernels/ref/soft_max.h"

namespace kvern::ref {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// [visible] attention of one query to the tokens it sees.
absl::StatusOr<std::vector<double>> Attention(const StopCheck* stop, CentredKeys& keys,
                                              const std::vector<float>& query, int64_t visible) {
  const auto head_dim = static_cast<int64_t>(query.size());
  const double constant = keys.ReferenceDot(query.data(), head_dim);
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  std::vector<double> logits(visible);
  for (int64_t token = 0; token < visible; ++token) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
    keys.Load(token);
    const float dot = LaneDot(keys.centred(), query.data(), head_dim);
    logits[token] = (double{dot} + constant) * scale;
  }
  const SoftMax soft_max(logits);
  for (double& logit : logits) logit = soft_max.Probability(logit);
  return logits;
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
      KVERN_ASSIGN_OR_RETURN(const std::vector<double> shares,
                             Attention(stop, keys, query, prefix + i + 1));
      for (int64_t token = 0; token < prefix; ++token) row[token] += shares[token];
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
