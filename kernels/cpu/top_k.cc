// Every token gets a rank in which forced ones come first and those without a vote last; the keep
// list is what reaches the rank of the last kept token.
#include "kernels/cpu/top_k.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/top_k.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/order_key.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/order_keys-inl.h"
#include "kernels/cpu/radix_select.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr uint32_t kForcedRank = 0xFFFFFFFFu;  // above infinity, which has 0xFF800001
constexpr uint32_t kNoRank = 0;                // neither forced nor candidate

struct Counts {
  int64_t forced = 0;
  int64_t candidates = 0;
};

class RowSelector {
 public:
  RowSelector(const HeadProblem& problem, const TopKArgs& args)
      : runner_(problem.runner),
        args_(args),
        layer_(problem.layer),
        head_(problem.head),
        tokens_(args.scores.shape[2]),
        ranks_(problem.scratch.Take<uint32_t>(PadToLanes(tokens_))) {}

  // Once scratch.Taken() is ok. Errors: those of the check at each tile.
  absl::Status Select(KeepList* keep) {
    Counts counts;
    for (int64_t tile = 0; tile < tokens_; tile += kTileTokens) {
      KVERN_RETURN_IF_ERROR(runner_.Check());
      RankTile(tile, std::min(tile + kTileTokens, tokens_), &counts);
    }
    const int64_t count = keep->Count(layer_, head_);
    KVERN_CHECK(count >= counts.forced && count <= counts.forced + counts.candidates);
    if (count == 0) return absl::OkStatus();
    const Threshold threshold = SelectThreshold({ranks_, static_cast<size_t>(tokens_)}, count);
    Write(threshold, keep->Row(layer_, head_), count);
    return absl::OkStatus();
  }

 private:
  void RankTile(int64_t token, int64_t end, Counts* counts) {
    const KeyTag d;
    const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
    const float* scores = args_.scores.At(layer_, head_);
    const uint8_t* forced = args_.forced.At(layer_, head_);
    const uint8_t* candidates = args_.candidates.At(layer_, head_);
    const bool dense = args_.scores.stride[2] == 1 && args_.forced.stride[2] == 1 &&
                       args_.candidates.stride[2] == 1;
    for (; dense && token + step <= end; token += step) {
      const auto is_forced = LoadMask(forced + token);
      const auto is_candidate = hn::AndNot(is_forced, LoadMask(candidates + token));
      const KeyVec key = OrderKeys(hn::LoadU(hn::Rebind<float, KeyTag>(), scores + token));
      const KeyVec rank = hn::IfThenElseZero(is_candidate, hn::Add(key, hn::Set(d, 1u)));
      hn::Store(hn::IfThenElse(is_forced, hn::Set(d, kForcedRank), rank), d, ranks_ + token);
      counts->forced += static_cast<int64_t>(hn::CountTrue(d, is_forced));
      counts->candidates += static_cast<int64_t>(hn::CountTrue(d, is_candidate));
    }
    for (; token < end; ++token) {
      ranks_[token] = kNoRank;
      if (args_.forced(layer_, head_, token) != 0) {
        ranks_[token] = kForcedRank;
        ++counts->forced;
      } else if (args_.candidates(layer_, head_, token) != 0) {
        ranks_[token] = OrderKey(args_.scores(layer_, head_, token)) + 1;
        ++counts->candidates;
      }
    }
  }

  // Of the tokens of the threshold's rank the first `taken` (oldest) or the last (recent).
  struct EqualRange {
    int64_t first;
    int64_t end;
  };
  EqualRange TakenOfEqual(const Threshold& threshold) const {
    if (threshold.taken == threshold.equal) return {0, tokens_};
    int64_t left = threshold.taken;
    if (args_.tie == TieRule::kOldest) {
      int64_t token = 0;
      for (; left > 0; ++token) left -= ranks_[token] == threshold.key ? 1 : 0;
      return {0, token};
    }
    int64_t token = tokens_;
    for (; left > 0; --token) left -= ranks_[token - 1] == threshold.key ? 1 : 0;
    return {token, tokens_};
  }

  void Write(const Threshold& threshold, int32_t* out, int64_t count) const {
    const KeyTag d;
    const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
    std::fill(ranks_ + tokens_, ranks_ + PadToLanes(tokens_), kNoRank);
    const EqualRange equal = TakenOfEqual(threshold);
    const int32_t* const end = out + count;
    const KeyVec below = hn::Set(d, threshold.key - 1);  // no kept rank is kNoRank
    for (int64_t token = 0; token < tokens_; token += step) {
      uint8_t bytes[8] = {};
      hn::StoreMaskBits(d, hn::Gt(hn::Load(d, ranks_ + token), below), bytes);
      for (uint32_t bits = bytes[0] | uint32_t{bytes[1]} << 8; bits != 0; bits &= bits - 1) {
        const int64_t kept = token + std::countr_zero(bits);
        const bool is_equal = ranks_[kept] == threshold.key;
        if (is_equal && (kept < equal.first || kept >= equal.end)) continue;
        *out++ = static_cast<int32_t>(kept);
      }
    }
    KVERN_CHECK(out == end);
  }

  const Runner& runner_;
  const TopKArgs& args_;
  const int64_t layer_;
  const int64_t head_;
  const int64_t tokens_;
  uint32_t* const ranks_;  // [padded tokens]
};

absl::Status TopKHead(const HeadProblem& problem, const TopKArgs& args, KeepList* keep) {
  RowSelector selector(problem, args);
  KVERN_RETURN_IF_ERROR(problem.scratch.Taken());
  return selector.Select(keep);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(TopKHead);

absl::Status TopK(Runner& runner, const TopKArgs& args, KeepList* keep) {
  KVERN_CHECK(keep->layers == args.scores.shape[0] && keep->kv_heads == args.scores.shape[1]);
  return ForEachHead(runner, args.scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(TopKHead)(problem, args, keep);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
