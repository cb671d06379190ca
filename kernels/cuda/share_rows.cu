// A thread takes tokens of a group: it reads them in every member, in order, then writes them back.
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/share_rows.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kShare = kShareRowsRun / kThreads;  // tokens of a thread, kThreads apart

// NaN if any member is. Infinities stay: they are scores here.
class Shared {
 public:
  __device__ void Add(float member) {
    const double value = double{member};
    nan_ = nan_ || isnan(member);
    sum_ += value;
    largest_ = value > largest_ ? value : largest_;
  }
  __device__ float Mean(int32_t size) const { return Rounded(sum_ / static_cast<double>(size)); }
  __device__ float Largest() const { return Rounded(largest_); }

 private:
  __device__ float Rounded(double shared) const {
    return nan_ || isnan(shared) ? NoScore() : static_cast<float>(shared);
  }

  double sum_ = 0;
  double largest_ = -std::numeric_limits<double>::infinity();
  bool nan_ = false;
};

__global__ void __launch_bounds__(kThreads, 3) ShareRowsKernel(ShareRowsParams params) {
  const ScoreRun run = params.grid.RunOf(blockIdx.x);
  const RowGroup group = params.groups[run.row];
  const int64_t* members = params.members + group.first;
  Shared shared[kShare];
  for (int32_t member = 0; member < group.size; ++member) {
    const ScoreRow row = params.scores[members[member]];
    KVERN_UNROLL
    for (int i = 0; i < kShare; ++i) {
      const int32_t token = run.first + i * kThreads + static_cast<int32_t>(threadIdx.x);
      if (token < run.end) shared[i].Add(row.data[token * row.stride]);
    }
  }
  for (int32_t member = 0; member < group.size; ++member) {
    const ScoreRow row = params.scores[members[member]];
    KVERN_UNROLL
    for (int i = 0; i < kShare; ++i) {
      const int32_t token = run.first + i * kThreads + static_cast<int32_t>(threadIdx.x);
      if (token < run.end)
        row.data[token * row.stride] =
            params.mean ? shared[i].Mean(group.size) : shared[i].Largest();
    }
  }
}

}  // namespace

cudaError_t LaunchShareRows(const ShareRowsParams& params, cudaStream_t stream) {
  return Launch(&ShareRowsKernel, {params.grid.blocks, kThreads}, params, stream);
}

}  // namespace kvern::cuda
