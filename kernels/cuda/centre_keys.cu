// Finds the reference key a block of tokens at a time and stops at the first that holds one.
#include "kernels/cuda/centre_keys.h"
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/token_sum.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHalfWarps = kThreads / kLanes;
constexpr int kMaxHeadDim = 1024;

template <class T, RowAccess access>
__device__ bool RowIsFinite(const KvLayer& keys, const std::byte* row, int32_t head_dim) {
  bool finite = true;
  for (int32_t first = 0; first < head_dim && finite; first += kOctet) {
    float x[kOctet];
    LoadOctet<T, access>(row, keys.dim_stride, first, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) finite = finite && isfinite(x[e]);
  }
  return finite;
}

// The first token of `row` with a finite key, of those in `mask` (null: of all); row.tokens if
// there is none. The whole block asks and gets the same answer.
template <class T, RowAccess access>
__device__ int32_t FirstFinite(const CentreKeysParams& params, const HeadRow& row,
                               const uint8_t* mask, int32_t* first_of_warp) {
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int32_t round = 0; round < row.tokens; round += kThreads) {
    const int32_t token = round + static_cast<int32_t>(threadIdx.x);
    const bool asked = token < row.tokens && (mask == nullptr || mask[token] != 0);
    const bool found = asked && RowIsFinite<T, access>(keys, keys.Address(row.head, token),
                                                       params.rows.keys.shape.head_dim);
    const unsigned votes = __ballot_sync(kAllLanes, found);
    if (threadIdx.x % kWarp == 0) {
      first_of_warp[warp] =
          votes == 0 ? row.tokens : round + warp * kWarp + __ffs(static_cast<int>(votes)) - 1;
    }
    __syncthreads();
    int32_t first = row.tokens;
    for (int w = 0; w < kWarps; ++w) first = min(first, first_of_warp[w]);
    __syncthreads();
    if (first < row.tokens) return first;
  }
  return row.tokens;
}

// A half warp per vector, a thread per lane.
__device__ void DotReference(const CentreKeysParams& params, const HeadRow& row, int64_t row_index,
                             const float* reference) {
  const QueryVectors vectors = params.vectors[row.sequence];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t first_head = int64_t{row.layer} * params.q_heads + row.head * params.group;
  const int32_t count = params.group * vectors.per_head;
  for (int32_t round = 0; round < count; round += kHalfWarps) {
    const int32_t index = round + static_cast<int32_t>(threadIdx.x) / kLanes;
    double sum = 0;
    if (index < count) {
      const float* vector = vectors.data + (first_head * vectors.per_head + index) * params.dims;
      for (int32_t d = lane; d < params.dims; d += kLanes) {
        sum = fma(double{vector[d]}, double{reference[d]}, sum);
      }
    }
    sum = HalfWarpTreeSum(sum);
    if (index < count && lane == 0) {
      const int32_t head = index / vectors.per_head;
      params.constants[(row_index * params.group + head) * params.max_per_head + index -
                       head * vectors.per_head] = sum;
    }
  }
}

// One block per row.
template <class T, RowAccess access>
__global__ void __launch_bounds__(kThreads) CentreKeysKernel(CentreKeysParams params) {
  KVERN_SHARED(int32_t, first_of_warp, kWarps);
  KVERN_SHARED(float, reference, kMaxHeadDim);
  const int64_t row_index = blockIdx.x;
  const HeadRow row = params.rows.rows[row_index];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  int32_t token = row.tokens;
  if (params.candidates != nullptr) {
    token = FirstFinite<T, access>(params, row, params.candidates[row_index].data, first_of_warp);
  }
  if (token >= row.tokens) token = FirstFinite<T, access>(params, row, nullptr, first_of_warp);
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const int32_t first = static_cast<int32_t>(threadIdx.x) * kOctet;
  if (first < head_dim) {
    float x[kOctet] = {};
    if (token < row.tokens) {
      LoadOctet<T, access>(keys.Address(row.head, token), keys.dim_stride, first, x);
    }
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      reference[first + e] = x[e];
      params.reference[row_index * head_dim + first + e] = x[e];
    }
  }
  __syncthreads();
  DotReference(params, row, row_index, reference);
}

}  // namespace

cudaError_t LaunchCentreKeys(const CentreKeysParams& params, cudaStream_t stream) {
  const RowShape& shape = params.rows.keys.shape;
  const LaunchShape launch = {params.rows.count, kThreads};
  return VisitDType(shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return shape.access == RowAccess::kVector
               ? Launch(&CentreKeysKernel<T, RowAccess::kVector>, launch, params, stream)
               : Launch(&CentreKeysKernel<T, RowAccess::kElements>, launch, params, stream);
  });
}

}  // namespace kvern::cuda
