// One pass adds unit keys to the anchor and keeps every norm, the next takes the cosines.
#include "kernels/cpu/key_diff.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/key_diff.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/dim_sums-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kSmallestNorm = 1e-12;    // of a key, before it is divided
constexpr double kSmallestProduct = 1e-8;  // of the two norms under the cosine

// Keys of one head, un-rotated if asked, a chunk at a time.
class KeyChunks {
 public:
  KeyChunks(const HeadProblem& problem, const KeyDiffArgs& args)
      : problem_(problem),
        args_(args),
        keys_(args.keys[problem.layer]),
        tile_(TakeTile<float>(problem.scratch, kChunkTokens, keys_.head_dim)) {}

  // Once scratch.Taken() is ok.
  void Clear() { std::fill(tile_.data, tile_.data + tile_.Size(), 0.0f); }
  int64_t head_dim() const { return keys_.head_dim; }
  const float* Row(int64_t r) const { return tile_.At(r); }

  HWY_INLINE void Load(int64_t first, int64_t count) {
    LoadRows(keys_, problem_.head, first, FirstRows(tile_, count));
    for (int64_t r = 0; r < count && args_.unrotate != nullptr; ++r) {
      const RotationTable& table = *args_.unrotate;
      const int64_t angles = table.Row(problem_.layer, problem_.head, first + r);
      TurnRow<Turn::kUnrotate>(RowOf(table, angles), tile_.At(r));
    }
  }

 private:
  const HeadProblem& problem_;
  const KeyDiffArgs& args_;
  const KvRef& keys_;
  TensorView<float, 2> tile_;
};

struct Anchor {
  DimSums direction;  // its totals: mean unit key of the finite keys alive
  double* norms;      // [tokens] of the keys, NaN for those not finite
};

absl::Status FindAnchor(const Runner& runner, KeyChunks& chunks, TensorView<const uint8_t, 1> alive,
                        Anchor& anchor) {
  const int64_t tokens = alive.shape[0];
  int64_t added = 0;
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kChunkTokens, tokens - first);
    chunks.Load(first, count);
    for (int64_t r = 0; r < count; ++r) {
      const float* key = chunks.Row(r);
      const bool finite = AllFinite(key, chunks.head_dim());
      const double norm = std::sqrt(LaneDotAs<double>(key, key, chunks.head_dim()));
      anchor.norms[first + r] = finite ? norm : kRowNaN;
      if (!finite || alive(first + r) == 0) continue;
      anchor.direction.Add(first + r, key, 1.0 / std::max(norm, kSmallestNorm));
      ++added;
    }
    const int64_t next = first + kChunkTokens;
    if (next % kTileTokens == 0 || next >= tokens) anchor.direction.CloseTile();
  }
  for (int64_t i = 0; i < chunks.head_dim() && added > 0; ++i) {
    anchor.direction.totals()[i] /= static_cast<double>(added);
  }
  return absl::OkStatus();
}

absl::Status KeyDiffHead(const HeadProblem& problem, const KeyDiffArgs& args, ScoreView scores) {
  Scratch& scratch = problem.scratch;
  const KvRef& keys = args.keys[problem.layer];
  const int64_t tokens = TokensOf(keys, problem.head, scores.shape[2]);
  KeyChunks chunks(problem, args);
  Anchor anchor = {DimSums(scratch, keys.head_dim), scratch.Take<double>(PadToLanes(tokens))};
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  chunks.Clear();
  anchor.direction.Clear();
  const TensorView<const uint8_t, 1> alive = {
      args.alive.At(problem.layer, problem.head), {tokens}, {args.alive.stride[2]}};
  KVERN_RETURN_IF_ERROR(FindAnchor(problem.runner, chunks, alive, anchor));
  const double* direction = anchor.direction.totals();
  double* row = anchor.norms;
  const double anchor_norm = std::sqrt(LaneDotAs<double>(direction, direction, keys.head_dim));
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(problem.runner, first));
    const int64_t count = std::min(kChunkTokens, tokens - first);
    chunks.Load(first, count);
    for (int64_t r = 0; r < count; ++r) {
      double& norm_then_score = row[first + r];
      const double product = std::max(norm_then_score * anchor_norm, kSmallestProduct);
      norm_then_score = -LaneDotAs<double>(chunks.Row(r), direction, keys.head_dim) / product;
    }
  }
  StoreScores(row, tokens, ScoreRow(scores, problem));
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(KeyDiffHead);

absl::Status KeyDiff(Runner& runner, const KeyDiffArgs& args, ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(KeyDiffHead)(problem, args, scores);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
