// A block of threads per row of a packed table: at most 64 tokens of one (layer, kv_head, role).
#include "kernels/cuda/encode.h"
#include "kernels/cuda/encode_group.cuh"
#include "kernels/cuda/encode_pair.cuh"

namespace kvern::cuda {
namespace {

// Two threads per token. ptxas: 158 registers on sm_80 and sm_90a, 146 on sm_100 for bf16 and
// 128, so that 12 warps fill a multiprocessor; each has 64 independent elements to work on.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kCodingThreads) EncodePairsKernel(EncodeParams params) {
  KVERN_SHARED(Vector16, mean, kHeadDim / 4);
  KVERN_ENCODE_SHARED(shared, reinterpret_cast<float*>(mean));
  const Block block = BlockAt(params.coding, blockIdx.x);
  Prepare(params.coding, block, shared);
  __syncthreads();
  PairEncoder<T, kHeadDim>(params.coding, block, shared).Encode();
  __syncthreads();
  WriteCounts(block, shared, params.counts + blockIdx.x);
}

// 16 threads per token, 8 tokens at once. Room for 80 registers: left to itself ptxas
// takes fewer and spills.
template <class T>
__global__ void __launch_bounds__(kCodingThreads, 6) EncodeGroupsKernel(EncodeParams params) {
  KVERN_DYNAMIC_SHARED(float, rows);
  KVERN_ENCODE_SHARED(common, rows);
  KVERN_SHARED(Vector16, sfv_magnitudes, kSfvVectors);
  KVERN_SHARED(float, sfv_half_squares, kSfvVectors);
  EncodeShared shared = common;
  shared.sfv = {sfv_magnitudes, sfv_half_squares};
  const Block block = BlockAt(params.coding, blockIdx.x);
  Prepare(params.coding, block, shared);
  LoadSfv(block.row.codec, params.coding.sfv_words, shared.sfv);
  ScaleChannels<T>(params.coding, block);
  __syncthreads();
  GroupEncoder<T> encoder(params.coding, block, shared,
                          GroupRowOf(rows, params.coding.shape.head_dim));
  for (int32_t first = 0; first < block.row.tokens; first += kGroups) {
    const int32_t token = first + static_cast<int32_t>(threadIdx.x) / kLanes;
    const bool live = token < block.row.tokens;
    encoder.Encode(live ? token : block.row.tokens - 1, live);
  }
  __syncthreads();
  WriteCounts(block, shared, params.counts + blockIdx.x);
}

template <class T>
cudaError_t LaunchPairs(const EncodeParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.coding.count, kCodingThreads};
  return params.coding.shape.head_dim == 64
             ? Launch(&EncodePairsKernel<T, 64>, launch, params, stream)
             : Launch(&EncodePairsKernel<T, 128>, launch, params, stream);
}

}  // namespace

cudaError_t LaunchEncode(const EncodeParams& params, cudaStream_t stream) {
  const RowShape& shape = params.coding.shape;
  if (params.coding.path == CodingPath::kPairs) {
    return shape.dtype == DType::kBF16 ? LaunchPairs<BFloat16>(params, stream)
                                       : LaunchPairs<Float16>(params, stream);
  }
  return VisitDType(shape.dtype, [&](auto tag) {
    const auto kernel = &EncodeGroupsKernel<typename decltype(tag)::type>;
    const int bytes = GroupSharedBytes(shape.head_dim);
    const cudaError_t error = AllowShared(kernel, bytes);
    if (error != cudaSuccess) return error;
    return Launch(kernel, {params.coding.count, kCodingThreads, bytes}, params, stream);
  });
}

}  // namespace kvern::cuda
