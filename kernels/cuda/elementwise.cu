// One f32 operation per score. A block takes a run of one row and reads all of its share before it
// writes, so that the reads overlap.
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/row.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kShare = kElementwiseRun / kThreads;  // tokens of a thread, kThreads apart

__device__ float OneNaN(float score) { return isnan(score) ? NoScore() : score; }

__device__ int32_t TokenOf(const ScoreRun& run, int share) {
  return run.first + share * kThreads + static_cast<int32_t>(threadIdx.x);
}
__device__ void LoadShare(const ScoreRow& row, const ScoreRun& run, float (&scores)[kShare]) {
  KVERN_UNROLL
  for (int i = 0; i < kShare; ++i) {
    const int32_t token = TokenOf(run, i);
    scores[i] = token < run.end ? row.data[token * row.stride] : 0.0f;
  }
}
__device__ void StoreShare(const float (&scores)[kShare], const ScoreRun& run,
                           const ScoreRow& row) {
  KVERN_UNROLL
  for (int i = 0; i < kShare; ++i) {
    const int32_t token = TokenOf(run, i);
    if (token < run.end) row.data[token * row.stride] = scores[i];
  }
}

__global__ void __launch_bounds__(kThreads) ScaleKernel(ScaleParams params) {
  const ScoreRun run = params.grid.RunOf(blockIdx.x);
  const ScoreRow row = params.scores[run.row];
  float scores[kShare];
  LoadShare(row, run, scores);
  KVERN_UNROLL
  for (int i = 0; i < kShare; ++i) scores[i] = OneNaN(params.factor * scores[i]);
  StoreShare(scores, run, row);
}

__device__ float Larger(float into, float score) {
  // A comparison would hide the NaN of either.
  if (isnan(into) || isnan(score)) return NoScore();
  return into > score ? into : score;
}

__global__ void __launch_bounds__(kThreads) BlendKernel(BlendParams params) {
  const ScoreRun run = params.grid.RunOf(blockIdx.x);
  const ScoreRow row = params.accumulated[run.row];
  float scores[kShare];
  float into[kShare];
  LoadShare(params.scores[run.row], run, scores);
  LoadShare(row, run, into);
  KVERN_UNROLL
  for (int i = 0; i < kShare; ++i)
    into[i] = params.sum ? OneNaN(into[i] + scores[i]) : Larger(into[i], scores[i]);
  StoreShare(into, run, row);
}

__global__ void __launch_bounds__(kThreads) HideScoresKernel(HideScoresParams params) {
  const ScoreRun run = params.grid.RunOf(blockIdx.x);
  const ScoreRow row = params.scores[run.row];
  const uint8_t* candidates = params.candidates[run.row].data;
  float scores[kShare];
  LoadShare(row, run, scores);
  unsigned nan_candidates = 0;
  KVERN_UNROLL
  for (int i = 0; i < kShare; ++i) {
    const int32_t token = TokenOf(run, i);
    if (token >= run.end) continue;
    if (candidates[token] == 0) {
      row.data[token * row.stride] = NoScore();
    } else if (isnan(scores[i])) {
      ++nan_candidates;
    }
  }
  nan_candidates = __reduce_add_sync(kAllLanes, nan_candidates);
  if (threadIdx.x % kWarp == 0 && nan_candidates != 0) {
    // NOLINTNEXTLINE(runtime/int): the type that 64-bit atomics take
    atomicAdd(reinterpret_cast<unsigned long long*>(params.nan_candidates + run.sequence),
              static_cast<unsigned long long>(nan_candidates));  // NOLINT(runtime/int)
  }
}

}  // namespace

cudaError_t LaunchScale(const ScaleParams& params, cudaStream_t stream) {
  return Launch(&ScaleKernel, {params.grid.blocks, kThreads}, params, stream);
}
cudaError_t LaunchBlend(const BlendParams& params, cudaStream_t stream) {
  return Launch(&BlendKernel, {params.grid.blocks, kThreads}, params, stream);
}
cudaError_t LaunchHideScores(const HideScoresParams& params, cudaStream_t stream) {
  return Launch(&HideScoresKernel, {params.grid.blocks, kThreads}, params, stream);
}

}  // namespace kvern::cuda
