// A gain never grows (DiverseGain), so a stale one bounds the true one from above: in each round
// every warp brings its own best candidate up to date, and the block picks only when the best of
// all is fresh. The picks are those of the eager form (ref/diverse.cc).
#include "kernels/base/diverse_rules.h"
#include "kernels/base/order_key.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/diverse.h"
#include "kernels/cuda/row.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPairs = kWarp / 2;  // of a warp: two threads share a dot product

struct Extremes {
  double low;
  double high;
};

// Smallest and largest finite score of the candidates; `of_warps` [2 * kWarps] is shared memory.
__device__ inline Extremes ExtremesOf(const DiverseProblem& problem, double* of_warps) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < problem.candidates; i += kThreads) {
    const double score = double{problem.scores.data[problem.tokens[i] * problem.scores.stride]};
    if (!isfinite(score)) continue;
    low = score < low ? score : low;
    high = score > high ? score : high;
  }
  KVERN_UNROLL
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const double other_low = __shfl_xor_sync(kAllLanes, low, distance);
    const double other_high = __shfl_xor_sync(kAllLanes, high, distance);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (LaneId() == 0) {
    of_warps[WarpId()] = low;
    of_warps[kWarps + WarpId()] = high;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    low = of_warps[warp] < low ? of_warps[warp] : low;
    high = of_warps[kWarps + warp] > high ? of_warps[kWarps + warp] : high;
  }
  return {low, high};
}

// As ScaleToUnit of base/diverse_rules.h.
__device__ inline float ToUnit(float score, const Extremes& extremes) {
  if (score != score) return score;
  if (extremes.high > extremes.low) {
    const double unit = (score - extremes.low) / (extremes.high - extremes.low);
    return static_cast<float>(unit < 0.0 ? 0.0 : unit > 1.0 ? 1.0 : unit);
  }
  return score == std::numeric_limits<float>::infinity() ? 1.0f : 0.0f;
}

template <class T, RowAccess access>
__device__ inline float PairDot(const KvLayer& values, const std::byte* a, const std::byte* b,
                                int32_t head_dim) {
  float lanes[kOctet] = {};
  for (int32_t first = threadIdx.x % 2 != 0 ? kOctet : 0; first < head_dim; first += kStep) {
    float x[kOctet];
    float y[kOctet];
    LoadOctet<T, access>(a, values.dim_stride, first, x);
    LoadOctet<T, access>(b, values.dim_stride, first, y);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) lanes[e] = fmaf(x[e], y[e], lanes[e]);
  }
  return PairTreeSum(lanes);
}

// 1 / |value| of every candidate in every row.
template <class T, RowAccess access>
__device__ inline void MeasureValues(const DiverseParams& params, const DiverseProblem& problem) {
  const int32_t head_dim = params.values.shape.head_dim;
  for (int32_t first = 0; first < problem.candidates; first += kThreads / 2) {
    const int32_t i = first + static_cast<int32_t>(threadIdx.x) / 2;
    const int32_t candidate = min(i, problem.candidates - 1);
    for (int32_t r = 0; r < problem.row_count; ++r) {
      float squared = 0;
      if (head_dim > 0) {
        const DiverseRow row = problem.rows[r];
        const KvLayer& values = params.values.layers[row.kv];
        const std::byte* value = values.Address(row.head, problem.tokens[candidate]);
        squared = PairDot<T, access>(values, value, value, head_dim);
      }
      if (i < problem.candidates && threadIdx.x % 2 == 0) {
        problem.inverse[int64_t{i} * problem.row_count + r] = InverseLength(squared);
      }
    }
  }
}

// What candidate i loses by pick p: the pair's answer.
template <class T, RowAccess access>
__device__ inline float RedundancyOf(const DiverseParams& params, const DiverseProblem& problem,
                                     int32_t i, int32_t p) {
  const int32_t head_dim = params.values.shape.head_dim;
  double sum = 0;
  for (int32_t r = 0; r < problem.row_count; ++r) {
    float dot = 0;
    if (head_dim > 0) {
      const DiverseRow row = problem.rows[r];
      const KvLayer& values = params.values.layers[row.kv];
      dot = PairDot<T, access>(values, values.Address(row.head, problem.tokens[i]),
                               values.Address(row.head, problem.tokens[p]), head_dim);
    }
    sum += double{RowCosine(dot, problem.inverse[int64_t{i} * problem.row_count + r],
                            problem.inverse[int64_t{p} * problem.row_count + r])};
  }
  return Redundancy(sum, problem.row_count);
}

// Candidates that this warp watches: 32 of every 32 * kWarps.
__device__ inline uint64_t BestOfWarp(const DiverseParams& params, const DiverseProblem& problem) {
  uint64_t best = 0;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < problem.candidates; i += kThreads) {
    if (problem.seen[i] < 0) continue;
    const float gain = DiverseGain(problem.gains[i], params.lambda, problem.redundancy[i]);
    // Places are never 0, so no rank is: 0 means that nothing is left.
    const uint32_t place = static_cast<uint32_t>(i);
    const uint64_t rank = RankKey(gain, params.recent_wins ? place + 1 : ~place);
    best = rank > best ? rank : best;
  }
  return WarpMax(best);
}
__device__ inline int32_t CandidateOf(const DiverseParams& params, uint64_t rank) {
  const uint32_t low = static_cast<uint32_t>(rank);
  return static_cast<int32_t>(params.recent_wins ? low - 1 : ~low);
}

// Takes the picks that candidate i has not seen into its redundancy, by one whole warp.
template <class T, RowAccess access>
__device__ inline void Refresh(const DiverseParams& params, const DiverseProblem& problem,
                               int32_t i, int32_t picked) {
  float most = problem.redundancy[i];
  for (int32_t p = problem.seen[i]; p < picked; p += kPairs) {
    const int32_t own = p + LaneId() / 2;
    const float redundancy =
        RedundancyOf<T, access>(params, problem, i, problem.chosen[min(own, picked - 1)]);
    most = redundancy > most ? redundancy : most;
  }
  // In [0, 1]: as bits they are in the same order.
  most = __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(most)));
  __syncwarp();
  if (LaneId() == 0) {
    problem.redundancy[i] = most;
    problem.seen[i] = picked;
  }
  __syncwarp();
}

template <class T, RowAccess access>
__global__ void __launch_bounds__(kThreads, 2) DiverseKernel(DiverseParams params) {
  KVERN_SHARED(double, extremes_of_warps, 2 * kWarps);
  KVERN_SHARED(uint64_t, best_of_warps, kWarps);
  KVERN_SHARED(int32_t, stopped, 1);
  const DiverseProblem problem = params.problems[blockIdx.x];
  Extremes extremes = {0, 0};
  if (params.to_unit) extremes = ExtremesOf(problem, extremes_of_warps);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < problem.candidates; i += kThreads) {
    const float score = problem.scores.data[problem.tokens[i] * problem.scores.stride];
    problem.gains[i] = params.to_unit ? ToUnit(score, extremes) : score;
    problem.redundancy[i] = 0;
    problem.seen[i] = 0;
  }
  MeasureValues<T, access>(params, problem);
  __syncthreads();
  for (int32_t picked = 0; picked < problem.picks;) {
    if (threadIdx.x == 0) stopped[0] = *static_cast<const volatile int32_t*>(params.stop);
    const uint64_t best_of_warp = BestOfWarp(params, problem);
    const uint64_t best = BlockMax<kWarps>(best_of_warp, best_of_warps);  // holds a barrier
    if (stopped[0] != 0) return;  // all threads: nobody waits for an answer
    const int32_t winner = CandidateOf(params, best);
    const bool fresh = problem.seen[winner] == picked;
    __syncthreads();
    if (fresh) {
      if (threadIdx.x == 0) {
        problem.chosen[picked] = winner;
        problem.order[picked] = problem.tokens[winner];
        problem.seen[winner] = -1;
      }
      ++picked;
    } else if (best_of_warp != 0) {
      const int32_t own = CandidateOf(params, best_of_warp);
      if (problem.seen[own] < picked) Refresh<T, access>(params, problem, own, picked);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchDiverse(const DiverseParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.problem_count, kThreads};
  return VisitDType(params.values.shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return params.values.shape.access == RowAccess::kVector
               ? Launch(&DiverseKernel<T, RowAccess::kVector>, launch, params, stream)
               : Launch(&DiverseKernel<T, RowAccess::kElements>, launch, params, stream);
  });
}

}  // namespace kvern::cuda
