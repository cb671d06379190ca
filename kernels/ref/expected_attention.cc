// The attention a token can expect from queries known by mean and covariance, times its value.
#include "kernels/ref/expected_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/rows.h"
#include "kernels/ref/soft_max.h"

namespace kvern::ref {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kSmallestValueNorm = 1e-30;  // under a logarithm (ruling 7)

using Vector = std::vector<double>;

Vector Dense(const double* from, int64_t stride, int64_t n) {
  Vector to(n);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
  return to;
}

double Dot(const Vector& a, const Vector& b) {
  return LaneDot(a.data(), b.data(), static_cast<int64_t>(b.size()));
}

// Moments of one query head.
struct Query {
  Vector linear;
  std::vector<Vector> factors;
  Vector diagonal;  // empty with `full`
};

Query QueryOf(const ExpectedAttentionArgs& args, int64_t layer, int64_t q_head) {
  Query query;
  const int64_t head_dim = args.linear.shape[2];
  query.linear = Dense(args.linear.At(layer, q_head), args.linear.stride[2], head_dim);
  for (int32_t j = 0; j < args.rank; ++j) {
    query.factors.push_back(
        Dense(args.factors.At(layer, q_head, j), args.factors.stride[3], head_dim));
  }
  if (!args.full) {
    query.diagonal = Dense(args.diagonal.At(layer, q_head), args.diagonal.stride[2], head_dim);
  }
  return query;
}

double Logit(const Query& query, const Vector& key) {
  double logit = Dot(query.linear, key);
  Vector images;
  for (const Vector& factor : query.factors) images.push_back(Dot(factor, key));
  if (query.diagonal.empty()) {
    logit += Dot(images, key);
  } else {
    Vector squares;
    for (const double x : key) squares.push_back(x * x);
    for (const double image : images) logit = std::fma(image, image, logit);
    logit += Dot(query.diagonal, squares);
  }
  return std::isfinite(logit) ? logit : kNaN;
}

// Over the query heads of the group, in order: mean of the probabilities.
double MeanProbability(const std::vector<SoftMax>& soft_max, const std::vector<Vector>& logits,
                       int64_t token) {
  double sum = 0;
  for (size_t g = 0; g < logits.size(); ++g) sum += soft_max[g].Probability(logits[g][token]);
  return sum / static_cast<double>(logits.size());
}

// The logarithm of the same, without leaving log space.
double LogMeanProbability(const std::vector<SoftMax>& soft_max, const std::vector<Vector>& logits,
                          int64_t token) {
  double largest = -kInfinity;
  for (size_t g = 0; g < logits.size(); ++g) {
    const double x = logits[g][token] - soft_max[g].LogSum();
    if (std::isnan(x)) return kNaN;
    largest = x > largest ? x : largest;
  }
  double sum = 0;
  for (size_t g = 0; g < logits.size(); ++g) {
    sum += Exp((logits[g][token] - soft_max[g].LogSum()) - largest);
  }
  return largest + Log(sum / static_cast<double>(logits.size()));
}

double ValueNorm(const ExpectedAttentionArgs& args, int64_t layer, int64_t head, int64_t token) {
  const KvRef& values = args.values[layer];
  if (token >= values.Length(head)) return kNaN;
  std::vector<float> row(values.head_dim);
  LoadRow(values, head, token, row.data());
  return Norm(row.data(), values.head_dim);
}

absl::Status ScoreHead(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                       ScoreView scores) {
  const auto [stop, layer, head] = problem;
  const KvRef& keys = args.keys[layer];
  const int64_t tokens = TokensOf(keys, head, scores.shape[2]);
  const int64_t group_size = args.q_heads / scores.shape[1];
  std::vector<Vector> logits(group_size, Vector(tokens, kNaN));
  std::vector<SoftMax> soft_max;
  std::vector<float> row(keys.head_dim);
  for (int64_t g = 0; g < group_size; ++g) {
    const Query query = QueryOf(args, layer, head * group_size + g);
    for (int64_t token = 0; token < tokens; ++token) {
      KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
      if (args.counted(layer, head, token) == 0) continue;
      LoadRow(keys, head, token, row.data());
      logits[g][token] = Logit(query, Vector(row.begin(), row.end()));
    }
    soft_max.emplace_back(logits[g]);
  }
  for (int64_t token = 0; token < scores.shape[2]; ++token) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
    double score = kNaN;
    if (token < tokens && args.log) {
      score = LogMeanProbability(soft_max, logits, token);
    } else if (token < tokens) {
      score = MeanProbability(soft_max, logits, token) + double{args.epsilon};
    }
    if (token < tokens && args.value_norm) {
      const double norm = ValueNorm(args, layer, head, token);
      score = args.log ? score + Log(norm < kSmallestValueNorm ? kSmallestValueNorm : norm)
                       : score * norm;
    }
    scores(layer, head, token) = ScoreFrom(score);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ExpectedAttention(const StopCheck* stop, const ExpectedAttentionArgs& args,
                               ScoreView scores) {
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(ScoreHead({stop, layer, head}, args, scores));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
