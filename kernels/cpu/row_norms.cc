// Squares are added while the row comes out of memory; 16 rows share the trees of their lanes.
#include "kernels/cpu/row_norms.h"

#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_norms.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/tree_sums-inl.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows at a time: enough sums in flight to hide the latency of fma.
constexpr int kRowsTogether = 4;

// lanes [kRowsTogether, 16] of the squares of `n` elements of rows r, r + 1, ...
template <class T>
HWY_INLINE void SquareLanes(const RowChunk<T>& chunk, int64_t r, int64_t n,
                            float* HWY_RESTRICT lanes) {
  const LaneTag<float> d;
  using V = hn::Vec<decltype(d)>;
  for (int64_t part = 0; part < kLanes; part += static_cast<int64_t>(hn::MaxLanes(d))) {
    V sum[kRowsTogether];
    Unroll<kRowsTogether>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Zero(d); });
    int64_t i = part;
    for (; i - part + kLanes <= n; i += kLanes) {
      Unroll<kRowsTogether>([&](auto k) KVERN_INLINE_STEP {
        const V x = LoadAsFloat(d, chunk.Row(r + k) + i);
        sum[k] = hn::MulAdd(x, x, sum[k]);
      });
    }
    if (i < n) {
      const auto present = Present(d, n - i);
      Unroll<kRowsTogether>([&](auto k) KVERN_INLINE_STEP {
        const V x = LoadAsFloat(d, chunk.Row(r + k) + i);
        sum[k] = hn::IfThenElse(present, hn::MulAdd(x, x, sum[k]), sum[k]);
      });
    }
    Unroll<kRowsTogether>([&](auto k)
                              HWY_ATTR { hn::Store(sum[k], d, lanes + k * kLanes + part); });
  }
}

// norms [16], aligned; those that are not finite are kNoScore.
template <class T>
HWY_INLINE void ChunkNorms(const RowChunk<T>& chunk, int64_t n, float* HWY_RESTRICT norms) {
  HWY_ALIGN float lanes[kChunkTokens * kLanes];
  for (int64_t r = 0; r < kChunkTokens; r += kRowsTogether) {
    for (int64_t k = 0; k < kRowsTogether; ++k) chunk.Prefetch(r + k);
    SquareLanes(chunk, r, n, lanes + r * kLanes);
  }
  StoreTreeSums16(lanes, norms);
  const LaneTag<float> d;
  for (int64_t r = 0; r < kChunkTokens; r += static_cast<int64_t>(hn::MaxLanes(d))) {
    const auto norm = hn::Sqrt(hn::Load(d, norms + r));
    hn::Store(hn::IfThenElse(hn::IsFinite(norm), norm, hn::Set(d, kNoScore)), d, norms + r);
  }
}

absl::Status RowNormsOfRun(const HeadRun& run, LayerRefs rows, ScoreView norms) {
  const KvRef& ref = rows[run.layer];
  const int64_t n = ref.head_dim;
  RowChunks chunks(run, ref, ReadInSteps(n));
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  const auto visit = [&](const auto& chunk) HWY_ATTR {
    HWY_ALIGN float chunk_norms[kChunkTokens];
    ChunkNorms(chunk, n, chunk_norms);
    for (int64_t r = 0; r < chunk.count(); ++r) {
      norms(run.layer, chunk.head(), chunk.first() + r) = chunk_norms[r];
    }
  };
  KVERN_RETURN_IF_ERROR(chunks.ForEach(norms.shape[2], kChunkTokens, visit));
  for (int64_t head = run.first; head < run.first + run.count; ++head) {
    for (int64_t token = TokensOf(ref, head, norms.shape[2]); token < norms.shape[2]; ++token) {
      norms(run.layer, head, token) = kNoScore;
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(RowNormsOfRun);

absl::Status RowNorms(Runner& runner, LayerRefs rows, ScoreView norms) {
  const int64_t heads = NearHeads(rows, norms.shape[1]);
  return ForEachHeadRun(runner, norms.shape, heads, [&](const HeadRun& run) {
    return HWY_DYNAMIC_DISPATCH(RowNormsOfRun)(run, rows, norms);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
