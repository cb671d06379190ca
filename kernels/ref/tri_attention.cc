// Every key gets its expected logit under the calibrated queries: a dot product, plus a term for
// the queries' spread that only sees the length of each band.
#include "kernels/ref/tri_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/ref/centred_keys.h"
#include "kernels/ref/group_scores.h"
#include "kernels/ref/rows.h"

namespace kvern::ref {
namespace {

// Strided [n] to dense.
std::vector<float> Dense(const float* from, int64_t stride, int64_t n) {
  std::vector<float> to(n);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
  return to;
}

float BandLength(const TriAttentionArgs& args, const float* row, int32_t band) {
  const bool half = args.layout == RopeLayout::kHalf;
  const float re = row[half ? band : 2 * band];
  const float im = row[half ? band + args.bands : 2 * band + 1];
  return std::sqrt(std::fma(re, re, im * im));
}

// What one query head asks of a key.
struct Query {
  std::vector<std::vector<float>> u;  // [columns][2 * bands]
  std::vector<double> constant;       // [columns] <u, reference key>
  std::vector<float> w;               // [bands]
};

Query QueryOf(const TriAttentionArgs& args, const CentredKeys& keys, int64_t layer,
              int64_t q_head) {
  Query query;
  const int64_t dims = 2 * int64_t{args.bands};
  for (int32_t column = 0; column < args.columns; ++column) {
    query.u.push_back(Dense(args.u.At(layer, q_head, column), args.u.stride[3], dims));
    query.constant.push_back(keys.ReferenceDot(query.u.back().data(), dims));
  }
  query.w = Dense(args.w.At(layer, q_head), args.w.stride[2], args.bands);
  return query;
}

// Largest column, NaN if any is; the spread term once.
double RawScore(const TriAttentionArgs& args, const Query& query, const CentredKeys& keys) {
  double best = -kInfinity;
  for (int32_t column = 0; column < args.columns; ++column) {
    const float dot = LaneDot(keys.centred(), query.u[column].data(), 2 * int64_t{args.bands});
    const double logit = double{dot} + query.constant[column];
    best = logit > best || std::isnan(logit) ? logit : best;
  }
  std::vector<float> lengths(args.bands);
  for (int32_t band = 0; band < args.bands; ++band) {
    lengths[band] = BandLength(args, keys.row(), band);
  }
  const double raw = best + double{LaneDot(lengths.data(), query.w.data(), args.bands)};
  return std::isfinite(raw) ? raw : std::numeric_limits<double>::quiet_NaN();
}

absl::Status ScoreHead(const HeadProblem& problem, const TriAttentionArgs& args, ScoreView scores) {
  const auto [stop, layer, head] = problem;
  const KvRef& ref = args.keys[layer];
  const int64_t tokens = TokensOf(ref, head, scores.shape[2]);
  const int64_t group_size = args.q_heads / scores.shape[1];
  const uint8_t* candidates = args.candidates.At(layer, head);
  CentredKeys keys(ref, head, tokens, candidates);
  GroupScores group(args.group, tokens);
  std::vector<double> raw(tokens);
  for (int64_t q_head = head * group_size; q_head < (head + 1) * group_size; ++q_head) {
    const Query query = QueryOf(args, keys, layer, q_head);
    for (int64_t token = 0; token < tokens; ++token) {
      KVERN_RETURN_IF_ERROR(CheckAtTile(stop, token));
      keys.Load(token);
      raw[token] = RawScore(args, query, keys);
    }
    const Spread spread = SpreadOf(raw, candidates);
    for (double& score : raw) score = args.zscore ? Standardise(spread, score) : score;
    group.Add(raw);
  }
  for (int64_t token = 0; token < scores.shape[2]; ++token) {
    scores(layer, head, token) = token < tokens ? ScoreFrom(group.Score(token)) : NoScore();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status TriAttention(const StopCheck* stop, const TriAttentionArgs& args, ScoreView scores) {
  for (int64_t layer = 0; layer < scores.shape[0]; ++layer) {
    for (int64_t head = 0; head < scores.shape[1]; ++head) {
      KVERN_RETURN_IF_ERROR(ScoreHead({stop, layer, head}, args, scores));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
