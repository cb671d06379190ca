// The attention a token can expect from queries known by mean and covariance, times its value.
#include "kernels/ref/expected_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/math.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/centred_keys.h"
#include "kernels/ref/rows.h"
#include "kernels/ref/soft_max.h"

namespace kvern::ref {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kSmallestValueNorm = 1e-30;  // under a logarithm (ruling 7)

using Vector = std::vector<double>;
using FloatVector = std::vector<float>;

Vector Dense(const double* from, int64_t stride, int64_t n) {
  Vector to(n);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
  return to;
}

FloatVector Rounded(const Vector& from) { return FloatVector(from.begin(), from.end()); }

template <class T>
double Dot(const std::vector<T>& a, const T* b) {
  return double{LaneDot(a.data(), b, static_cast<int64_t>(a.size()))};
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

// The low-rank form around the reference key r: with key = r + c the logit is a constant, which the
// softmax does not see, and the same form of c whose linear part is the slope at r. c is small
// where keys share a large bias, so f32 dot products keep their digits (ruling 6).
class CentredForm {
 public:
  CentredForm(const Query& query, const Vector& reference)
      : slope_(Rounded(SlopeAt(query, reference))), diagonal_(Rounded(query.diagonal)) {
    for (const Vector& factor : query.factors) factors_.push_back(Rounded(factor));
  }

  // centred: [head_dim] key minus reference key.
  double Logit(const float* centred) const {
    double logit = Dot(slope_, centred);
    for (const FloatVector& factor : factors_) {
      const double image = Dot(factor, centred);
      logit = std::fma(image, image, logit);
    }
    FloatVector squares(centred, centred + slope_.size());
    for (float& x : squares) x *= x;
    return logit + Dot(diagonal_, squares.data());
  }

 private:
  static Vector SlopeAt(const Query& query, const Vector& reference) {
    Vector slope = query.linear;
    for (const Vector& factor : query.factors) {
      const double twice = 2.0 * Dot(factor, reference.data());
      for (size_t d = 0; d < slope.size(); ++d) slope[d] = std::fma(twice, factor[d], slope[d]);
    }
    for (size_t d = 0; d < slope.size(); ++d) {
      slope[d] = std::fma(2.0 * query.diagonal[d], reference[d], slope[d]);
    }
    return slope;
  }

  FloatVector slope_;
  std::vector<FloatVector> factors_;
  FloatVector diagonal_;
};

// The full form, in f64: one answer for comparisons with the literature.
double FullLogit(const Query& query, const Vector& key) {
  Vector images;
  for (const Vector& factor : query.factors) images.push_back(Dot(factor, key.data()));
  return Dot(query.linear, key.data()) + Dot(images, key.data());
}

// [tokens] of one query head; NaN for tokens that are not counted or whose logit is not finite.
absl::StatusOr<Vector> Logits(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                              const Query& query, CentredKeys& keys) {
  const CentredForm form(args.full ? Query() : query, keys.Reference());
  Vector logits(keys.tokens(), kNaN);
  for (int64_t token = 0; token < keys.tokens(); ++token) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(problem.stop, token));
    if (args.counted(problem.layer, problem.head, token) == 0) continue;
    keys.Load(token);
    const double logit = args.full
                             ? FullLogit(query, Vector(keys.row(), keys.row() + keys.head_dim()))
                             : form.Logit(keys.centred());
    if (std::isfinite(logit)) logits[token] = logit;
  }
  return logits;
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
  const int64_t tokens = TokensOf(args.keys[layer], head, scores.shape[2]);
  const int64_t group_size = args.q_heads / scores.shape[1];
  std::vector<Vector> logits;
  std::vector<SoftMax> soft_max;
  CentredKeys keys(args.keys[layer], head, tokens, args.counted.At(layer, head));
  for (int64_t g = 0; g < group_size; ++g) {
    const Query query = QueryOf(args, layer, head * group_size + g);
    KVERN_ASSIGN_OR_RETURN(logits.emplace_back(), Logits(problem, args, query, keys));
    soft_max.emplace_back(logits.back());
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
