// First the weight of every token, two threads to a pair of rows; then 16 threads per octet of
// coordinates, each a lane of ruling 6's order over tokens.
#include "kernels/cuda/key_sums.h"
#include "kernels/cuda/row_pair.cuh"
#include "kernels/cuda/unrotate.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = kTile;
constexpr int kOctets = kThreads / kLanes;    // of one round
constexpr int kRoundDims = kOctets * kOctet;  // coordinates of one round
constexpr double kLeftOut = 0.0;              // no weight is 0
constexpr double kSmallestNorm = 1e-12;

struct TileKeys {
  KvLayer keys;
  HeadRow row;
  const DeviceRotation* rotation;
  int32_t first;  // token
  int32_t head_dim;
};

// |key| in f64 (kOne: 0) of this thread's own row of the pair, NaN where the key is not finite.
template <class T, RowAccess access, KeyWeight weight>
__device__ inline double OwnKeyNorm(const TileKeys& tile, int32_t last) {
  const int32_t pair = FirstOfPair(tile.first);
  const DeviceRotation* rotation = weight == KeyWeight::kOne ? nullptr : tile.rotation;
  TurnedRow rows[kPairRows];
  KVERN_UNROLL
  for (int r = 0; r < kPairRows; ++r) {
    rows[r] = TurnedRowAt(tile.keys, tile.row, min(pair + r, last), rotation);
  }
  double lanes[kPairRows][kOctet] = {};
  unsigned finite = 3;  // bit r: row r
  for (int32_t first = IsOdd() ? kOctet : 0; first < tile.head_dim; first += kStep) {
    KVERN_UNROLL
    for (int r = 0; r < kPairRows; ++r) {
      float x[kOctet];
      LoadUnrotatedOctet<T, access>(rows[r], first, x);
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        if (!isfinite(x[e])) finite &= ~(1u << r);
        if (weight == KeyWeight::kInverseNorm) {
          lanes[r][e] = fma(double{x[e]}, double{x[e]}, lanes[r][e]);
        }
      }
    }
  }
  finite &= __shfl_xor_sync(kAllLanes, finite, 1);
  const double norm = weight == KeyWeight::kOne ? 0.0 : sqrt(OwnTreeSum(lanes));
  const bool is_finite = (finite & (IsOdd() ? 2u : 1u)) != 0;
  return is_finite ? norm : std::numeric_limits<double>::quiet_NaN();
}

template <KeyWeight weight>
__device__ inline double WeightOf(double norm) {
  return weight == KeyWeight::kOne ? 1.0 : 1.0 / (norm > kSmallestNorm ? norm : kSmallestNorm);
}

// Lane `lane` of the sums of one octet over the tile's tokens.
template <class T, RowAccess access>
__device__ inline void SumOctet(const TileKeys& tile, const double* weights, int32_t octet,
                                double (&sums)[kOctet]) {
  const int lane = static_cast<int>(threadIdx.x) / kOctets;
  for (int i = 0; i < kTile / kLanes; ++i) {
    const int within = lane + i * kLanes;
    const double weight = weights[within];
    if (weight == kLeftOut) continue;
    float x[kOctet];
    LoadUnrotatedOctet<T, access>(
        TurnedRowAt(tile.keys, tile.row, tile.first + within, tile.rotation), octet * kOctet, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) sums[e] = fma(double{x[e]}, weight, sums[e]);
  }
}

template <class T, RowAccess access, KeyWeight weight>
__global__ void __launch_bounds__(kThreads) KeySumsKernel(KeySumsParams params) {
  KVERN_SHARED(double, weights, kTile);
  KVERN_SHARED(double, lanes, kLanes* kRoundDims);
  const Tile place = params.rows.tiles[blockIdx.x];
  TileKeys tile;
  tile.row = params.rows.rows[place.row];
  tile.keys = params.rows.keys.layers[tile.row.kv];
  tile.rotation = params.rotations + tile.row.sequence;
  tile.first = static_cast<int32_t>(place.first);
  tile.head_dim = params.rows.keys.shape.head_dim;

  const int32_t token = tile.first + static_cast<int32_t>(threadIdx.x);
  double own = kLeftOut;
  if (tile.first < tile.row.tokens) {  // the same for the whole block
    const double norm = OwnKeyNorm<T, access, weight>(tile, tile.row.tokens - 1);
    if (weight == KeyWeight::kInverseNorm) {
      params.norms[int64_t{blockIdx.x} * kTile + threadIdx.x] = norm;
    }
    const bool counted = token < tile.row.tokens && params.counted[place.row].data[token] != 0;
    if (counted && norm == norm) own = WeightOf<weight>(norm);
  }
  weights[threadIdx.x] = own;
  const int count = __syncthreads_count(own != kLeftOut);
  if (threadIdx.x == 0) params.counts[blockIdx.x] = count;

  const int32_t octet_of_round = static_cast<int32_t>(threadIdx.x) % kOctets;
  const int lane = static_cast<int>(threadIdx.x) / kOctets;
  for (int32_t first = 0; first < tile.head_dim; first += kRoundDims) {
    const int32_t octet = first / kOctet + octet_of_round;
    double sums[kOctet] = {};
    if (octet * kOctet < tile.head_dim) SumOctet<T, access>(tile, weights, octet, sums);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      lanes[lane * kRoundDims + octet_of_round * kOctet + e] = sums[e];
    }
    __syncthreads();
    const int32_t d = static_cast<int32_t>(threadIdx.x);
    if (d < kRoundDims && first + d < tile.head_dim) {
      const auto of_lane = [&](int i) { return lanes[i * kRoundDims + d]; };
      double sum[kLanes / 2];
      KVERN_UNROLL
      for (int i = 0; i < 8; ++i) sum[i] = of_lane(i) + of_lane(i + 8);
      KVERN_UNROLL
      for (int i = 0; i < 4; ++i) sum[i] += sum[i + 4];
      KVERN_UNROLL
      for (int i = 0; i < 2; ++i) sum[i] += sum[i + 2];
      params.sums[int64_t{blockIdx.x} * tile.head_dim + first + d] = sum[0] + sum[1];
    }
    __syncthreads();
  }
}

template <class T, RowAccess access>
cudaError_t LaunchWeighted(const KeySumsParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.rows.tile_count, kThreads};
  return params.weight == KeyWeight::kOne
             ? Launch(&KeySumsKernel<T, access, KeyWeight::kOne>, launch, params, stream)
             : Launch(&KeySumsKernel<T, access, KeyWeight::kInverseNorm>, launch, params, stream);
}

}  // namespace

cudaError_t LaunchKeySums(const KeySumsParams& params, cudaStream_t stream) {
  return VisitDType(params.rows.keys.shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return params.rows.keys.shape.access == RowAccess::kVector
               ? LaunchWeighted<T, RowAccess::kVector>(params, stream)
               : LaunchWeighted<T, RowAccess::kElements>(params, stream);
  });
}

}  // namespace kvern::cuda
