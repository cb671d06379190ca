// One pass over the keys gives all logits of the group in f64, one over the values the norms.
#include "kernels/cpu/expected_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/expected_attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kSmallestValueNorm = 1e-30;  // under a logarithm (ruling 7)

// Moments of the query heads of one group, packed for LaneDots.
struct QueryMoments {
  TensorView<double, 2> vectors;   // [group * (1 + rank), padded head_dim]: linear, then factors
  TensorView<double, 2> diagonal;  // [group, padded head_dim]; none with `full`
  int64_t size;                    // query heads
  int64_t per_head;                // 1 + rank
};

QueryMoments TakeMoments(Scratch& scratch, const ExpectedAttentionArgs& args, int64_t size) {
  const int64_t head_dim = args.linear.shape[2];
  const int64_t per_head = 1 + int64_t{args.rank};
  // The full form reads factors as rows, which LaneDots takes eight at a time.
  TensorView<double, 2> vectors = TakeTile<double>(scratch, size * per_head + kPanelRows, head_dim);
  return {FirstRows(vectors, size * per_head),
          TakeTile<double>(scratch, args.full ? 0 : size, head_dim), size, per_head};
}

void FillMoments(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                 const QueryMoments& moments) {
  const int64_t head_dim = args.linear.shape[2];
  for (int64_t g = 0; g < moments.size; ++g) {
    const int64_t layer = problem.layer;
    const int64_t q_head = problem.head * moments.size + g;
    const int64_t first = g * moments.per_head;
    CopyVector<double>({args.linear.At(layer, q_head), {head_dim}, {args.linear.stride[2]}},
                       moments.vectors.At(first));
    for (int64_t j = 0; j < args.rank; ++j) {
      CopyVector<double>({args.factors.At(layer, q_head, j), {head_dim}, {args.factors.stride[3]}},
                         moments.vectors.At(first + 1 + j));
    }
    if (args.full) continue;
    CopyVector<double>({args.diagonal.At(layer, q_head), {head_dim}, {args.diagonal.stride[2]}},
                       moments.diagonal.At(g));
  }
}

// A chunk of keys in f64 and what the moments make of it.
struct Chunk {
  TensorView<float, 2> rows;       // [kChunkTokens, padded head_dim]
  TensorView<double, 2> keys;      // the same
  TensorView<double, 2> squares;   // the same, squared
  TensorView<double, 2> dots;      // [group * (1 + rank), kChunkTokens]
  TensorView<double, 2> diagonal;  // [group, kChunkTokens]
  TensorView<double, 2> images;    // [kChunkTokens, padded rank]: only the full form
  int64_t count = 0;               // tokens in it
};

Chunk TakeChunk(Scratch& scratch, const ExpectedAttentionArgs& args, const QueryMoments& moments) {
  const int64_t head_dim = args.linear.shape[2];
  return {TakeTile<float>(scratch, kChunkTokens, head_dim),
          TakeTile<double>(scratch, kChunkTokens, head_dim),
          TakeTile<double>(scratch, kChunkTokens, head_dim),
          TakeTile<double>(scratch, moments.size * moments.per_head, kChunkTokens),
          TakeTile<double>(scratch, moments.size, kChunkTokens),
          TakeTile<double>(scratch, kChunkTokens, args.rank + kPanelRows),
          0};
}

// Squares of f32 are exact in f64.
HWY_INLINE void WidenChunk(const Chunk& chunk) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const int64_t elements = chunk.count * chunk.rows.stride[0];
  for (int64_t i = 0; i < elements; i += TokenStep()) {
    const TokenVec x = hn::PromoteTo(d, hn::Load(narrow, chunk.rows.data + i));
    hn::Store(x, d, chunk.keys.data + i);
    hn::Store(hn::Mul(x, x), d, chunk.squares.data + i);
  }
}

HWY_INLINE DotBlock<double> DotsOf(TensorView<double, 2> rows, int64_t count,
                                   TensorView<double, 2> vectors, int64_t n) {
  return {.rows = rows.data,
          .row_stride = rows.stride[0],
          .row_count = count,
          .vectors = vectors.data,
          .vector_stride = vectors.stride[0],
          .vector_count = vectors.shape[0],
          .n = n};
}

// logits [group, kChunkTokens at the chunk] of the low-rank form.
HWY_INLINE void LowRankLogits(const QueryMoments& moments, const Chunk& chunk, int64_t g,
                              double* logits) {
  const TokenTag d;
  const int64_t first = g * moments.per_head;
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    TokenVec logit = hn::Load(d, chunk.dots.At(first, r));
    for (int64_t j = 1; j < moments.per_head; ++j) {
      const TokenVec image = hn::Load(d, chunk.dots.At(first + j, r));
      logit = hn::MulAdd(image, image, logit);
    }
    hn::Store(hn::Add(logit, hn::Load(d, chunk.diagonal.At(g, r))), d, logits + r);
  }
}

// The same of the full form: the factors are the rows of a matrix, so a key has one image.
HWY_INLINE void FullLogits(const QueryMoments& moments, const Chunk& chunk, int64_t g,
                           double* logits) {
  const int64_t count = chunk.count;
  const int64_t rank = moments.per_head - 1;
  const int64_t first = g * moments.per_head;
  const int64_t head_dim = rank;
  TensorView<double, 2> factors = moments.vectors;
  factors.data = moments.vectors.At(first + 1);
  TensorView<double, 2> keys = FirstRows(chunk.keys, count);
  LaneDots(DotsOf(factors, rank, keys, head_dim), chunk.images);
  HWY_ALIGN double linear[kChunkTokens];
  TensorView<double, 2> vector = moments.vectors;
  vector.data = moments.vectors.At(first);
  vector.shape[0] = 1;
  LaneDots(DotsOf(keys, count, vector, head_dim), DenseView(linear, 1, kChunkTokens));
  for (int64_t r = 0; r < count; ++r) {
    logits[r] = linear[r] + LaneDotAs<double>(chunk.images.At(r), keys.At(r), head_dim);
  }
}

absl::Status FillLogits(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                        const QueryMoments& moments, TensorView<double, 2> logits) {
  const auto [runner, scratch, layer, head] = problem;
  const int64_t tokens = logits.shape[1];
  const int64_t head_dim = args.linear.shape[2];
  const uint8_t* counted = args.counted.At(layer, head);
  Chunk chunk = TakeChunk(scratch, args, moments);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  std::fill(chunk.rows.data, chunk.rows.data + chunk.rows.Size(), 0.0f);
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kChunkTokens, tokens - first);
    chunk.count = count;
    LoadRows(args.keys[layer], head, first, FirstRows(chunk.rows, count));
    WidenChunk(chunk);
    if (!args.full) {
      LaneDots(DotsOf(chunk.keys, count, moments.vectors, head_dim), chunk.dots);
      LaneDots(DotsOf(chunk.squares, count, moments.diagonal, head_dim), chunk.diagonal);
    }
    for (int64_t g = 0; g < moments.size; ++g) {
      double* row = logits.At(g, first);
      if (args.full) {
        FullLogits(moments, chunk, g, row);
      } else {
        LowRankLogits(moments, chunk, g, row);
      }
      for (int64_t r = 0; r < count; ++r) {
        if (counted[first + r] == 0) row[r] = kRowNaN;
      }
    }
  }
  return absl::OkStatus();
}

// Mean probability over the group, in place of its first row.
void MeanProbabilities(TensorView<double, 2> logits, SoftMax* soft_max, double epsilon) {
  const TokenTag d;
  const int64_t size = logits.shape[0];
  for (int64_t g = 0; g < size; ++g) {
    soft_max[g] = SoftMaxOf(logits.At(g), logits.shape[1], logits.At(g));
  }
  for (int64_t token = 0; token < logits.shape[1]; token += TokenStep()) {
    TokenVec sum = hn::Zero(d);
    for (int64_t g = 0; g < size; ++g) {
      const TokenVec inverse = hn::Set(d, 1.0 / soft_max[g].sum);
      sum = hn::Add(sum, hn::Mul(hn::Load(d, logits.At(g, token)), inverse));
    }
    const TokenVec mean = hn::Div(sum, hn::Set(d, static_cast<double>(size)));
    hn::Store(hn::Add(mean, hn::Set(d, epsilon)), d, logits.At(0, token));
  }
}

// The logarithm of the same without leaving log space (ruling 7).
void LogMeanProbabilities(TensorView<double, 2> logits, SoftMax* soft_max) {
  const TokenTag d;
  const int64_t size = logits.shape[0];
  for (int64_t g = 0; g < size; ++g) {
    soft_max[g] = SoftMaxOf(logits.At(g), logits.shape[1], /*exponentials=*/nullptr);
  }
  const auto log_probability = [&](int64_t g, int64_t token) HWY_ATTR {
    return hn::Sub(hn::Load(d, logits.At(g, token)), hn::Set(d, soft_max[g].LogSum()));
  };
  for (int64_t token = 0; token < logits.shape[1]; token += TokenStep()) {
    TokenVec largest = hn::Set(d, -kRowInfinity);
    for (int64_t g = 0; g < size; ++g) largest = StickyMax(largest, log_probability(g, token));
    TokenVec sum = hn::Zero(d);
    for (int64_t g = 0; g < size; ++g) {
      sum = hn::Add(sum, VectorExp(d, hn::Sub(log_probability(g, token), largest)));
    }
    const TokenVec mean = hn::Div(sum, hn::Set(d, static_cast<double>(size)));
    hn::Store(hn::Add(largest, VectorLog(d, mean)), d, logits.At(0, token));
  }
}

// Weighs each score by the norm of its value.
absl::Status WeighByValues(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                           int64_t tokens, double* row) {
  const KvRef& values = args.values[problem.layer];
  const NormReader reader = {values, problem.head,
                             TakeTile<float>(problem.scratch, kChunkTokens, values.head_dim)};
  KVERN_RETURN_IF_ERROR(problem.scratch.Taken());
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(problem.runner, first));
    HWY_ALIGN float norms[kChunkTokens] = {};
    reader.Read(first, std::min(kChunkTokens, tokens - first), norms);
    for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
      TokenVec norm = hn::PromoteTo(d, hn::Load(narrow, norms + r));
      TokenVec score = hn::Load(d, row + first + r);
      if (args.log) {
        const TokenVec floor = hn::Set(d, kSmallestValueNorm);
        norm = hn::IfThenElse(hn::Lt(norm, floor), floor, norm);
        score = hn::Add(score, VectorLog(d, norm));
      } else {
        score = hn::Mul(score, norm);
      }
      hn::Store(score, d, row + first + r);
    }
  }
  return absl::OkStatus();
}

absl::Status ExpectedAttentionHead(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                                   ScoreView scores) {
  Scratch& scratch = problem.scratch;
  const KvRef& keys = args.keys[problem.layer];
  const int64_t tokens = TokensOf(keys, problem.head, scores.shape[2]);
  const QueryMoments moments = TakeMoments(scratch, args, args.q_heads / scores.shape[1]);
  TensorView<double, 2> logits = TakeTile<double>(scratch, moments.size, tokens);
  logits.shape[1] = tokens;
  SoftMax* soft_max = scratch.Take<SoftMax>(moments.size);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  FillMoments(problem, args, moments);
  KVERN_RETURN_IF_ERROR(FillLogits(problem, args, moments, logits));
  if (args.log) {
    LogMeanProbabilities(logits, soft_max);
  } else {
    MeanProbabilities(logits, soft_max, double{args.epsilon});
  }
  if (args.value_norm) {
    KVERN_RETURN_IF_ERROR(WeighByValues(problem, args, tokens, logits.data));
  }
  StoreScores(logits.data, tokens, ScoreRow(scores, problem));
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(ExpectedAttentionHead);

absl::Status ExpectedAttention(Runner& runner, const ExpectedAttentionArgs& args,
                               ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(ExpectedAttentionHead)(problem, args, scores);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
