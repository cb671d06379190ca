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
#include "kernels/cpu/centred_keys-inl.h"
#include "kernels/cpu/column_dots-inl.h"
#include "kernels/cpu/column_norms-inl.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kSmallestValueNorm = 1e-30;  // under a logarithm (ruling 7)

// What one pass over keys and values leaves.
struct Rows {
  TensorView<double, 2>
      logits;    // [group, tokens up to a tile], NaN for tokens that are not counted
  float* norms;  // [tokens up to a tile] |value|, with value_norm
};

struct QueryHead {
  int64_t layer;
  int64_t q_head;
  int64_t g;  // in its group
};

// Tokens that are not counted have no logit. counted: [count] from token `first` on.
HWY_INLINE void MaskLogits(TensorView<const uint8_t, 1> counted, int64_t first,
                           TensorView<double, 2> logits) {
  for (int64_t r = 0; r < counted.shape[0]; ++r) {
    if (counted(r) != 0) continue;
    for (int64_t g = 0; g < logits.shape[0]; ++g) logits(g, first + r) = kRowNaN;
  }
}

// Norms of the values, a tile at a time.
class ValueNorms {
 public:
  ValueNorms(const HeadProblem& problem, const ExpectedAttentionArgs& args, float* norms)
      : wanted_(args.value_norm),
        // Without norms nothing is read; any rows will do.
        values_(args.value_norm ? args.values[problem.layer] : args.keys[problem.layer]),
        head_(problem.head),
        stream_(values_, head_, values_.Length(head_)),
        norms_(norms),
        tile_(TakeTile<float>(problem.scratch, kColumnTokens, values_.head_dim)) {}

  // Goes on to the columns from `first` on: 0, then each next ones.
  HWY_INLINE void Enter(int64_t first) {
    if (wanted_) stream_.Enter(first);
  }
  // Of `count` tokens of these columns.
  HWY_INLINE void Read(int64_t first, int64_t count) const {
    if (!wanted_) return;
    if (!stream_.IsPlain() || first + kColumnTokens > values_.Length(head_)) {
      NormReader{values_, head_, tile_}.Read(first, count, norms_ + first);
      return;
    }
    ColumnSource from;
    from.n = values_.head_dim;
    for (int64_t r = 0; r < kColumnTokens; ++r) from.rows[r] = stream_.Row(first + r);
    VisitDType(values_.dtype, [&](auto tag) HWY_ATTR {
      ColumnNorms<typename decltype(tag)::type>(from, norms_ + first);
    });
  }
  // Asks memory for the value of a token of the next columns.
  HWY_INLINE void Fetch(int64_t token) const {
    if (wanted_) stream_.Fetch(token);
  }

 private:
  bool wanted_;
  const KvRef& values_;
  int64_t head_;
  TokenStream stream_;
  float* norms_;
  TensorView<float, 2> tile_;
};

// Moments of the query heads of one group around the reference key (ref/expected_attention.cc).
struct CentredForms {
  VectorPanels vectors;    // [group * (1 + rank)] slope, then factors
  VectorPanels diagonals;  // [group]
  double* slope;           // [padded head_dim] before it is rounded
  double* factor;          // the same
  int64_t per_head;        // 1 + rank
};

CentredForms TakeForms(Scratch& scratch, const ExpectedAttentionArgs& args, int64_t group) {
  const int64_t head_dim = args.linear.shape[2];
  const int64_t per_head = 1 + int64_t{args.rank};
  return {VectorPanels(scratch, group * per_head, head_dim), VectorPanels(scratch, group, head_dim),
          scratch.Take<double>(PadToLanes(head_dim)), scratch.Take<double>(PadToLanes(head_dim)),
          per_head};
}

// Fills the vectors of query head g of the group.
void FillForm(const ExpectedAttentionArgs& args, const CentredKeys& keys, const QueryHead& query,
              const CentredForms& forms) {
  const auto [layer, q_head, g] = query;
  const int64_t head_dim = args.linear.shape[2];
  const float* reference = keys.reference();
  double* slope = forms.slope;
  const TensorView<const double, 1> diagonal = {
      args.diagonal.At(layer, q_head), {head_dim}, {args.diagonal.stride[2]}};
  CopyVector<double>({args.linear.At(layer, q_head), {head_dim}, {args.linear.stride[2]}}, slope);
  for (int64_t j = 0; j < args.rank; ++j) {
    const TensorView<const double, 1> factor = {
        args.factors.At(layer, q_head, j), {head_dim}, {args.factors.stride[3]}};
    CopyVector<double>(factor, forms.factor);
    const double twice = 2.0 * LaneDotAs<double>(forms.factor, reference, head_dim);
    for (int64_t d = 0; d < head_dim; ++d) slope[d] = std::fma(twice, forms.factor[d], slope[d]);
    forms.vectors.Fill(g * forms.per_head + 1 + j, factor);
  }
  for (int64_t d = 0; d < head_dim; ++d) {
    slope[d] = std::fma(2.0 * diagonal(d), double{reference[d]}, slope[d]);
  }
  forms.vectors.Fill<double>(g * forms.per_head, {slope, {head_dim}, {1}});
  forms.diagonals.Fill(g, diagonal);
}

// What the forms make of a tile of keys.
struct TileDots {
  float* vectors;    // [group * (1 + rank), kColumnTokens]
  float* diagonals;  // [group, kColumnTokens] with squares
};

// logits [kColumnTokens at the tile] of query head g.
HWY_INLINE void CombineDots(const CentredForms& forms, const TileDots& dots, int64_t g,
                            double* HWY_RESTRICT logits) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const float* of_head = dots.vectors + g * forms.per_head * kColumnTokens;
  const float* of_diagonal = dots.diagonals + g * kColumnTokens;
  const auto wide = [&](const float* from)
                        HWY_ATTR { return hn::PromoteTo(d, hn::Load(narrow, from)); };
  for (int64_t r = 0; r < kColumnTokens; r += TokenStep()) {
    TokenVec logit = wide(of_head + r);
    for (int64_t j = 1; j < forms.per_head; ++j) {
      const TokenVec image = wide(of_head + j * kColumnTokens + r);
      logit = hn::MulAdd(image, image, logit);
    }
    hn::Store(hn::Add(logit, wide(of_diagonal + r)), d, logits + r);
  }
}

// Fetches the keys and values of the tile from `first` on, a token at a time.
struct NextTile {
  const CentredKeys& keys;
  const ValueNorms& values;
  int64_t first;
  int64_t fetched = 0;
  HWY_INLINE void Do(int64_t done, int64_t all) {
    for (; fetched * all < kColumnTokens * done; ++fetched) {
      keys.Fetch(first + fetched);
      values.Fetch(first + fetched);
    }
  }
};

absl::Status LowRankLogits(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                           const Rows& out) {
  const auto [runner, scratch, layer, head] = problem;
  const TensorView<double, 2> logits = out.logits;
  const int64_t group = logits.shape[0];
  const uint8_t* counted = args.counted.At(layer, head);
  CentredKeys keys(problem, args.keys[layer], logits.shape[1]);
  const CentredForms forms = TakeForms(scratch, args, group);
  const TileDots dots = {scratch.Take<float>(group * forms.per_head * kColumnTokens),
                         scratch.Take<float>(group * kColumnTokens)};
  ValueNorms values(problem, args, out.norms);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  keys.FindReference(counted);
  for (int64_t g = 0; g < group; ++g) FillForm(args, keys, {layer, head * group + g, g}, forms);
  for (int64_t first = 0; first < keys.tokens(); first += kColumnTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kColumnTokens, keys.tokens() - first);
    values.Enter(first);
    keys.Load(first);
    NextTile next = {keys, values, first + kColumnTokens};
    NothingMeanwhile nothing;
    ColumnDots<KeyPower::kOne>(keys.columns(), forms.vectors, dots.vectors, next);
    ColumnDots<KeyPower::kSquare>(keys.columns(), forms.diagonals, dots.diagonals, nothing);
    for (int64_t g = 0; g < group; ++g) CombineDots(forms, dots, g, logits.At(g, first));
    MaskLogits({counted + first, {count}, {1}}, first, logits);
    values.Read(first, count);
  }
  return absl::OkStatus();
}

// The full form in f64: the factors are the rows of a matrix, so a key has one image.
struct FullForm {
  TensorView<double, 2> vectors;  // [1 + head_dim, padded head_dim]: linear, then factors
  TensorView<double, 2> keys;     // [kChunkTokens, padded head_dim]
  TensorView<double, 2> images;   // the same: <factor, key>
  double* linear;                 // [kChunkTokens] <linear, key>
};

FullForm TakeFullForm(Scratch& scratch, int64_t head_dim) {
  // LaneDots takes eight rows at a time.
  const int64_t images = head_dim + kPanelRows;
  return {FirstRows(TakeTile<double>(scratch, 1 + images, head_dim), 1 + head_dim),
          TakeTile<double>(scratch, kChunkTokens, head_dim),
          TakeTile<double>(scratch, kChunkTokens, images), scratch.Take<double>(kChunkTokens)};
}

void FillFullForm(const ExpectedAttentionArgs& args, const QueryHead& query, const FullForm& form) {
  const int64_t head_dim = args.linear.shape[2];
  CopyVector<double>(
      {args.linear.At(query.layer, query.q_head), {head_dim}, {args.linear.stride[2]}},
      form.vectors.At(0));
  for (int64_t j = 0; j < head_dim; ++j) {
    CopyVector<double>(
        {args.factors.At(query.layer, query.q_head, j), {head_dim}, {args.factors.stride[3]}},
        form.vectors.At(1 + j));
  }
}

HWY_INLINE DotBlock<double> DotsOf(TensorView<double, 2> rows, TensorView<double, 2> vectors,
                                   int64_t n) {
  return {.rows = rows.data,
          .row_stride = rows.stride[0],
          .row_count = rows.shape[0],
          .vectors = vectors.data,
          .vector_stride = vectors.stride[0],
          .vector_count = vectors.shape[0],
          .n = n};
}

// logits [keys] of a chunk of keys.
HWY_INLINE void FullChunk(const FullForm& form, TensorView<float, 2> rows, double* logits) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const int64_t head_dim = form.vectors.shape[0] - 1;
  const TensorView<double, 2> keys = FirstRows(form.keys, rows.shape[0]);
  for (int64_t i = 0; i < rows.shape[0] * rows.stride[0]; i += TokenStep()) {
    hn::Store(hn::PromoteTo(d, hn::Load(narrow, rows.data + i)), d, keys.data + i);
  }
  TensorView<double, 2> factors = form.vectors;
  factors.data = form.vectors.At(1);
  factors.shape[0] = head_dim;
  LaneDots(DotsOf(factors, keys, head_dim), form.images);
  LaneDots(DotsOf(keys, FirstRows(form.vectors, 1), head_dim),
           DenseView(form.linear, 1, kChunkTokens));
  for (int64_t r = 0; r < keys.shape[0]; ++r) {
    logits[r] = form.linear[r] + LaneDotAs<double>(form.images.At(r), keys.At(r), head_dim);
  }
}

absl::Status FullLogits(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                        const Rows& out) {
  const auto [runner, scratch, layer, head] = problem;
  const TensorView<double, 2> logits = out.logits;
  const int64_t tokens = logits.shape[1];
  const uint8_t* counted = args.counted.At(layer, head);
  const FullForm form = TakeFullForm(scratch, args.linear.shape[2]);
  const TensorView<float, 2> tile = TakeTile<float>(scratch, kChunkTokens, args.linear.shape[2]);
  ValueNorms values(problem, args, out.norms);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  std::fill(tile.data, tile.data + tile.Size(), 0.0f);
  for (int64_t g = 0; g < logits.shape[0]; ++g) {
    FillFullForm(args, {layer, head * logits.shape[0] + g, g}, form);
    for (int64_t first = 0; first < tokens; first += kChunkTokens) {
      KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
      const int64_t count = std::min(kChunkTokens, tokens - first);
      const TensorView<float, 2> rows = FirstRows(tile, count);
      LoadRows(args.keys[layer], head, first, rows);
      FullChunk(form, rows, logits.At(g, first));
    }
  }
  for (int64_t first = 0; first < tokens; first += kColumnTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kColumnTokens, tokens - first);
    MaskLogits({counted + first, {count}, {1}}, first, logits);
    values.Enter(first);
    values.Read(first, count);
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

// The logarithm of the same without leaving log space (ruling 7). log_sums: [group], working
// memory.
void LogMeanProbabilities(TensorView<double, 2> logits, double* HWY_RESTRICT log_sums) {
  const TokenTag d;
  const int64_t size = logits.shape[0];
  for (int64_t g = 0; g < size; ++g) {
    log_sums[g] = SoftMaxOf(logits.At(g), logits.shape[1], /*exponentials=*/nullptr).LogSum();
  }
  const auto log_probability = [&](int64_t g, int64_t token) HWY_ATTR {
    return hn::Sub(hn::Load(d, logits.At(g, token)), hn::Set(d, log_sums[g]));
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
void WeighByValues(const ExpectedAttentionArgs& args, const float* norms, int64_t tokens,
                   double* row) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const TokenVec floor = hn::Set(d, kSmallestValueNorm);
  for (int64_t token = 0; token < tokens; token += TokenStep()) {
    TokenVec norm = hn::PromoteTo(d, hn::Load(narrow, norms + token));
    TokenVec score = hn::Load(d, row + token);
    if (args.log) {
      norm = hn::IfThenElse(hn::Lt(norm, floor), floor, norm);
      score = hn::Add(score, VectorLog(d, norm));
    } else {
      score = hn::Mul(score, norm);
    }
    hn::Store(score, d, row + token);
  }
}

absl::Status ExpectedAttentionHead(const HeadProblem& problem, const ExpectedAttentionArgs& args,
                                   ScoreView scores) {
  Scratch& scratch = problem.scratch;
  const KvRef& keys = args.keys[problem.layer];
  const int64_t tokens = TokensOf(keys, problem.head, scores.shape[2]);
  const int64_t group = args.q_heads / scores.shape[1];
  const int64_t padded = PadToColumns(tokens);
  Rows rows = {TakeTile<double>(scratch, group, padded),
               scratch.Take<float>(args.value_norm ? padded : 0)};
  rows.logits.shape[1] = tokens;
  SoftMax* soft_max = scratch.Take<SoftMax>(group);
  double* log_sums = scratch.Take<double>(group);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  KVERN_RETURN_IF_ERROR(args.full ? FullLogits(problem, args, rows)
                                  : LowRankLogits(problem, args, rows));
  if (args.log) {
    LogMeanProbabilities(rows.logits, log_sums);
  } else {
    MeanProbabilities(rows.logits, soft_max, double{args.epsilon});
  }
  if (args.value_norm) WeighByValues(args, rows.norms, tokens, rows.logits.data);
  StoreScoreRow(rows.logits.data, tokens, ScoreRow(scores, problem));
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
