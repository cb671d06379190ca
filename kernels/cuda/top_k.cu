// Exact selection without sorting: three histograms over the digits of the order keys find the key
// of the last pick, and one more pass writes what lies above it, ties by the tie rule.
#include "kernels/cuda/top_k.h"

#include "kernels/base/order_key.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/device.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kItems = 4;  // tokens of a thread in one round: loads that wait together
constexpr int kRound = kThreads * kItems;
static_assert(kRound < 1 << 16);  // two counts of a round share a word

// Digits of 11 bits at 21, 10 and 0; the last overlaps the one before in a bit that is known then.
constexpr int kDigitBits = 11;
constexpr int kBins = 1 << kDigitBits;
constexpr int kTopShift = 32 - kDigitBits;
constexpr int kBinsPerThread = kBins / kThreads;

struct Row {
  ScoreRow scores;
  const uint8_t* candidates;
  const uint8_t* forced;
  int32_t tokens;

  __device__ bool Forced(int32_t token) const { return forced[token] != 0; }
  __device__ bool Candidate(int32_t token) const { return candidates[token] != 0; }
  __device__ uint32_t Key(int32_t token) const {
    return OrderKey(scores.data[token * scores.stride]);
  }
};

// What is known of the last pick's key. Candidates whose known bits are above are all picked, `need`
// of the `ties` whose known bits are the same.
struct Cut {
  uint32_t key;
  uint32_t known;  // mask
  uint32_t need;
  uint32_t ties;
};

__device__ inline void CountDigits(const Row& row, const Cut& cut, int shift, uint32_t* bins) {
  for (int32_t first = static_cast<int32_t>(threadIdx.x); first < row.tokens; first += kRound) {
    bool live[kItems];
    KVERN_UNROLL
    for (int i = 0; i < kItems; ++i) {
      const int32_t token = first + i * kThreads;
      live[i] = token < row.tokens && row.Candidate(token) && !row.Forced(token);
    }
    uint32_t keys[kItems];
    KVERN_UNROLL
    for (int i = 0; i < kItems; ++i) keys[i] = live[i] ? row.Key(first + i * kThreads) : 0;
    KVERN_UNROLL
    for (int i = 0; i < kItems; ++i) {
      if (live[i] && ((keys[i] ^ cut.key) & cut.known) == 0) {
        atomicAdd(&bins[(keys[i] >> shift) % kBins], 1u);
      }
    }
  }
}

// Extends the cut by the digit that the bins counted, from the largest digit down. Clears the bins.
__device__ inline void ChooseDigit(const Cut& cut, int shift, uint32_t* bins, Cut* next,
                                   uint32_t* of_warps) {
  const int top = kBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
  uint32_t counts[kBinsPerThread];
  uint32_t sum = 0;
  KVERN_UNROLL
  for (int i = 0; i < kBinsPerThread; ++i) {
    counts[i] = bins[top - i];
    bins[top - i] = 0;
    sum += counts[i];
  }
  uint32_t above = BlockExclusiveSum<kWarps>(sum, of_warps).before;
  KVERN_UNROLL
  for (int i = 0; i < kBinsPerThread; ++i) {
    if (above < cut.need && cut.need <= above + counts[i]) {
      *next = {cut.key | static_cast<uint32_t>(top - i) << shift, ~0u << shift, cut.need - above,
               counts[i]};
    }
    above += counts[i];
  }
}

// `of_warps` [kWarps], `next` and `bins`, all 0, are shared memory.
__device__ inline Cut FindCut(const Row& row, int32_t picks, uint32_t* bins, Cut* next,
                              uint32_t* of_warps) {
  if (picks == 0) return {~0u, ~0u, 0, 0};
  Cut cut = {0, 0, static_cast<uint32_t>(picks), 0};
  for (int shift = kTopShift;; shift = shift > kDigitBits ? shift - kDigitBits : 0) {
    CountDigits(row, cut, shift, bins);
    __syncthreads();
    ChooseDigit(cut, shift, bins, next, of_warps);
    __syncthreads();
    cut = *next;
    if (shift == 0 || cut.need == cut.ties) return cut;
  }
}

// Ties are numbered by token; those in [first, first + need) are kept.
struct TieRange {
  int32_t first;
  int32_t need;

  __device__ bool Holds(int32_t tie) const { return tie >= first && tie < first + need; }
  __device__ int32_t KeptBelow(int32_t tie) const { return min(max(tie - first, 0), need); }
};

// A warp takes kItems runs of 32 tokens in each round, so that a vote orders them. `of_warps`
// [2][kWarps] is shared memory: rounds alternate between the halves and need one barrier each.
__device__ inline void WriteKept(const Row& row, const Cut& cut, TieRange range, int32_t* keep,
                                 uint32_t* of_warps) {
  int32_t sure_before = 0;
  int32_t ties_before = 0;
  int half = 0;
  for (int32_t first = 0; first < row.tokens; first += kRound, half ^= 1) {
    const int32_t mine = first + WarpId() * kItems * kWarp + LaneId();
    uint32_t sure[kItems];
    uint32_t ties[kItems];
    uint32_t counts = 0;
    KVERN_UNROLL
    for (int i = 0; i < kItems; ++i) {
      const int32_t token = mine + i * kWarp;
      const bool live = token < row.tokens;
      const bool forced = live && row.Forced(token);
      const bool candidate = live && !forced && row.Candidate(token);
      const uint32_t key = candidate ? row.Key(token) & cut.known : 0;
      sure[i] = __ballot_sync(kAllLanes, forced || (candidate && key > cut.key));
      ties[i] = __ballot_sync(kAllLanes, candidate && key == cut.key);
      counts += static_cast<uint32_t>(__popc(sure[i]) + (__popc(ties[i]) << 16));
    }
    const Prefix<uint32_t> prefix = WarpsExclusiveSum<kWarps>(counts, of_warps + half * kWarps);
    int32_t sure_at = sure_before + static_cast<int32_t>(prefix.before & 0xFFFFu);
    int32_t tie_at = ties_before + static_cast<int32_t>(prefix.before >> 16);
    KVERN_UNROLL
    for (int i = 0; i < kItems; ++i) {
      const uint32_t bit = 1u << LaneId();
      const int32_t tie = tie_at + __popc(ties[i] & LanesBelow());
      if ((sure[i] & bit) != 0 || ((ties[i] & bit) != 0 && range.Holds(tie))) {
        const int32_t slot = sure_at + __popc(sure[i] & LanesBelow()) + range.KeptBelow(tie);
        keep[slot] = mine + i * kWarp;
      }
      sure_at += __popc(sure[i]);
      tie_at += __popc(ties[i]);
    }
    sure_before += static_cast<int32_t>(prefix.total & 0xFFFFu);
    ties_before += static_cast<int32_t>(prefix.total >> 16);
  }
}

// A block per row. ptxas: 32 registers, so four blocks fill an SM.
__global__ void __launch_bounds__(kThreads, 4) TopKKernel(TopKParams params) {
  KVERN_SHARED(uint32_t, bins, kBins);
  KVERN_SHARED(Cut, next, 1);
  KVERN_SHARED(uint32_t, of_warps, 2 * kWarps);
  const TopKRow out = params.rows[blockIdx.x];
  const Row row = {params.scores[blockIdx.x], params.candidates[blockIdx.x].data,
                   params.forced[blockIdx.x].data, out.tokens};
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) bins[bin] = 0;
  __syncthreads();
  const Cut cut = FindCut(row, out.picks, bins, next, of_warps);
  const int32_t need = static_cast<int32_t>(cut.need);
  const int32_t last = static_cast<int32_t>(cut.ties) - need;
  WriteKept(row, cut, {params.newest_wins ? last : 0, need}, out.keep, of_warps);
}

}  // namespace

cudaError_t LaunchTopK(const TopKParams& params, cudaStream_t stream) {
  return Launch(&TopKKernel, {params.row_count, kThreads}, params, stream);
}

}  // namespace kvern::cuda
