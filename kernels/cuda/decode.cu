// A block of threads per row of a packed table: at most 64 tokens of one (layer, kv_head, role).
#include "kernels/cuda/decode.h"
#include "kernels/cuda/decode_group.cuh"
#include "kernels/cuda/decode_pair.cuh"

namespace kvern::cuda {
namespace {

// Two threads per token. ptxas: 144 registers on sm_80 and sm_90a, 128 on sm_100 for 128.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kCodingThreads) DecodePairsKernel(DecodeParams params) {
  KVERN_SHARED(Vector16, mean, kHeadDim / 4);
  KVERN_SHARED(float, levels, 16);
  const DecodeShared shared = {reinterpret_cast<float*>(mean), levels};
  const Block block = BlockAt(params.coding, blockIdx.x);
  Prepare(params.coding, block, shared);
  __syncthreads();
  PairDecoder<T, kHeadDim>(params.coding, block, shared).Decode();
}

// 16 threads per token, 8 tokens at once. Room for 80 registers: left to itself ptxas
// takes fewer and spills.
template <class T>
__global__ void __launch_bounds__(kCodingThreads, 6) DecodeGroupsKernel(DecodeParams params) {
  KVERN_DYNAMIC_SHARED(float, rows);
  KVERN_SHARED(float, levels, 16);
  KVERN_SHARED(uint32_t, sfv_words, kSfvVectors);
  const DecodeShared shared = {rows, levels, sfv_words};
  const Block block = BlockAt(params.coding, blockIdx.x);
  Prepare(params.coding, block, shared);
  LoadSfvWords(block.row.codec, params.coding.sfv_words, sfv_words);
  __syncthreads();
  GroupDecoder<T> decoder(params.coding, block, shared,
                          GroupRowOf(rows, params.coding.shape.head_dim));
  for (int32_t first = 0; first < block.row.tokens; first += kGroups) {
    const int32_t token = first + static_cast<int32_t>(threadIdx.x) / kLanes;
    const bool live = token < block.row.tokens;
    decoder.Decode(live ? token : block.row.tokens - 1, live);
  }
}

template <class T>
cudaError_t LaunchPairs(const DecodeParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.coding.count, kCodingThreads};
  return params.coding.shape.head_dim == 64
             ? Launch(&DecodePairsKernel<T, 64>, launch, params, stream)
             : Launch(&DecodePairsKernel<T, 128>, launch, params, stream);
}

}  // namespace

cudaError_t LaunchDecode(const DecodeParams& params, cudaStream_t stream) {
  const RowShape& shape = params.coding.shape;
  if (params.coding.path == CodingPath::kPairs) {
    return shape.dtype == DType::kBF16 ? LaunchPairs<BFloat16>(params, stream)
                                       : LaunchPairs<Float16>(params, stream);
  }
  return VisitDType(shape.dtype, [&](auto tag) {
    const auto kernel = &DecodeGroupsKernel<typename decltype(tag)::type>;
    const int bytes = GroupSharedBytes(shape.head_dim);
    const cudaError_t error = AllowShared(kernel, bytes);
    if (error != cudaSuccess) return error;
    return Launch(kernel, {params.coding.count, kCodingThreads, bytes}, params, stream);
  });
}

}  // namespace kvern::cuda
