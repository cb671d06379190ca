// Rows travel through shared memory, a chunk at a time: all of it is read, and turned if asked,
// before any of it is written. That makes a forward pass in place safe: a slot is never behind its
// source (slot <= keep[slot]), so what a chunk overwrites was read by this chunk or an earlier one,
// and later chunks read behind it. As ref/gather.cc.
#include "kernels/base/band_rotation.h"
#include "kernels/base/lanes.h"
#include "kernels/cuda/gather.h"
#include "kernels/cuda/row.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 16;  // that share a row
constexpr int kGroups = kThreads / kRowThreads;

struct Angles {
  const float* cosine;
  const float* sine;
};
__device__ inline Angles AnglesOf(const DeviceRotation& table, const MoveRow& row, int32_t slot) {
  const int64_t at = int64_t{table.Row(row.layer, row.head, slot)} * table.bands;
  return {table.cosine + at, table.sine + at};
}

// Both angles of a row are the same to the bit: its bytes move as they are. The 16 threads of a row
// compare, whole warps vote.
__device__ inline bool SameForRow(const DeviceRotation& table, const Angles& a, const Angles& b) {
  bool same = true;
  for (int32_t f = static_cast<int32_t>(threadIdx.x) % kRowThreads; f < table.bands;
       f += kRowThreads) {
    same = same && __float_as_uint(a.cosine[f]) == __float_as_uint(b.cosine[f]) &&
           __float_as_uint(a.sine[f]) == __float_as_uint(b.sine[f]);
  }
  const unsigned votes = __ballot_sync(kAllLanes, same);
  const unsigned half = threadIdx.x % kWarp < kRowThreads ? 0xFFFFu : 0xFFFF0000u;
  return (votes & half) == half;
}

// Coordinate d of the row, turned from one angle to the other and rounded once; every NaN becomes
// the same one.
template <class T>
__device__ inline T Turned(const std::byte* source, int64_t dim_stride, const DeviceRotation& table,
                           const Angles& from, const Angles& to, int32_t d) {
  const auto at = [&](int64_t dim) {
    return ToFloat(*reinterpret_cast<const T*>(source + dim * dim_stride));
  };
  float value = at(d);
  if (d < 2 * table.bands) {
    const RotationRow dims = {table.layout, table.bands, from.cosine, from.sine};
    const bool half = table.layout == RopeLayout::kHalf;
    const int32_t band = half ? (d < table.bands ? d : d - table.bands) : d / 2;
    const Band raw = {at(dims.RealDim(band)), at(dims.ImagDim(band))};
    const Band turned = RotateBand(UnrotateBand(raw, from.cosine[band], from.sine[band]),
                                   to.cosine[band], to.sine[band]);
    value = d == dims.RealDim(band) ? turned.real : turned.imag;
  }
  return FromFloat<T>(value == value ? value : std::numeric_limits<float>::quiet_NaN());
}

// Row `slot` of the chunk into shared memory. All threads take part; those of dead rows only vote.
template <class T, RowAccess access>
__device__ inline void ReadRow(const GatherParams& params, const MoveRow& row, int32_t slot,
                               bool live, std::byte* staged) {
  const int32_t head_dim = params.in.shape.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads;
  const KvLayer& in = params.in.layers[row.kv];
  const int32_t token = row.keep[slot];
  const std::byte* source = in.Address(row.head, token);
  const DeviceRotation& from = params.from[row.problem];
  if (from.cosine != nullptr) {  // the same for the whole block
    const Angles then = AnglesOf(from, row, token);
    const Angles now = AnglesOf(params.to[row.problem], row, slot);
    if (!SameForRow(from, then, now)) {
      for (int32_t d = lane; live && d < head_dim; d += kRowThreads) {
        reinterpret_cast<T*>(staged)[d] = Turned<T>(source, in.dim_stride, from, then, now, d);
      }
      return;
    }
  }
  if (!live) return;
  if constexpr (access == RowAccess::kVector) {
    const int32_t bytes = head_dim * static_cast<int32_t>(sizeof(T));
    for (int32_t at = lane * 16; at < bytes; at += kRowThreads * 16) {
      Store(staged + at, Load(source + at));
    }
  } else {
    for (int32_t d = lane; d < head_dim; d += kRowThreads) {
      reinterpret_cast<T*>(staged)[d] = *reinterpret_cast<const T*>(source + d * in.dim_stride);
    }
  }
}

template <class T, RowAccess access>
__device__ inline void WriteRow(const GatherParams& params, const MoveRow& row, int32_t slot,
                                const std::byte* staged) {
  const int32_t head_dim = params.out.shape.head_dim;
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads;
  const KvLayer& out = params.out.layers[row.kv];
  std::byte* target = out.Address(row.head, slot);
  if constexpr (access == RowAccess::kVector) {
    const int32_t bytes = head_dim * static_cast<int32_t>(sizeof(T));
    for (int32_t at = lane * 16; at < bytes; at += kRowThreads * 16) {
      Store(target + at, Load(staged + at));
    }
  } else {
    for (int32_t d = lane; d < head_dim; d += kRowThreads) {
      *reinterpret_cast<T*>(target + d * out.dim_stride) = reinterpret_cast<const T*>(staged)[d];
    }
  }
}

template <class T, RowAccess access>
__global__ void __launch_bounds__(kThreads, 3) GatherKernel(GatherParams params) {
  KVERN_SHARED(Vector16, chunk_memory, kMoveChunkBytes / 16);
  auto* const chunk = reinterpret_cast<std::byte*>(chunk_memory);
  const MoveRun run = params.runs[blockIdx.x];
  const MoveRow row = params.rows[run.row];
  const int32_t row_bytes = params.in.shape.head_dim * static_cast<int32_t>(sizeof(T));
  const int32_t chunk_rows = params.chunk_rows;
  const int32_t group = static_cast<int32_t>(threadIdx.x) / kRowThreads;
  for (int32_t first = run.first; first < run.end; first += chunk_rows) {
    const int32_t count = min(chunk_rows, run.end - first);
    for (int32_t round = 0; round < count; round += kGroups) {
      const int32_t at = round + group;
      const bool live = at < count;
      ReadRow<T, access>(params, row, first + min(at, count - 1), live,
                         chunk + min(at, count - 1) * row_bytes);
    }
    __syncthreads();
    for (int32_t at = group; at < count; at += kGroups) {
      WriteRow<T, access>(params, row, first + at, chunk + at * row_bytes);
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchGather(const GatherParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.run_count, kThreads};
  const bool vectors =
      params.in.shape.access == RowAccess::kVector && params.out.shape.access == RowAccess::kVector;
  return VisitDType(params.in.shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return vectors ? Launch(&GatherKernel<T, RowAccess::kVector>, launch, params, stream)
                   : Launch(&GatherKernel<T, RowAccess::kElements>, launch, params, stream);
  });
}

}  // namespace kvern::cuda
