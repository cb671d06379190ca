// Finds the key of the last kept candidate by counting, then writes what lies above it in one scan.
#include "kernels/cpu/top_k.h"

#include "kernels/base/lanes.h"
#include "kernels/base/order_key.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/radix_select.h"

namespace kvern::cpu {
namespace {

class RowSelector {
 public:
  RowSelector(const TopKArgs& args, KeepList* keep, int64_t row)
      : args_(args),
        layer_(row / keep->kv_heads),
        head_(row % keep->kv_heads),
        out_(keep->Row(layer_, head_)),
        count_(keep->Count(layer_, head_)) {}

  absl::Status Select(const Runner& runner, Scratch& scratch) {
    scratch.Reset();
    const int64_t tokens = args_.scores.shape[2];
    keys_ = scratch.Take<uint32_t>(tokens);
    KVERN_RETURN_IF_ERROR(scratch.Taken());
    int64_t forced = 0;
    for (int64_t token = 0; token < tokens; ++token) {
      if (token % kTileTokens == 0) KVERN_RETURN_IF_ERROR(runner.Check());
      if (args_.forced(layer_, head_, token) != 0) {
        ++forced;
      } else if (args_.candidates(layer_, head_, token) != 0) {
        keys_[candidates_++] = OrderKey(args_.scores(layer_, head_, token));
      }
    }
    const int64_t slots = count_ - forced;
    KVERN_CHECK(slots >= 0 && slots <= candidates_);
    Threshold threshold;
    if (slots > 0) threshold = SelectThreshold({keys_, static_cast<size_t>(candidates_)}, slots);
    if (slots == 0) threshold.key = kAboveAllKeys;
    Write(threshold);
    return absl::OkStatus();
  }

 private:
  static constexpr uint32_t kAboveAllKeys = 0xFFFFFFFFu;  // infinity has 0xFF800000

  // Ascending scan; keys_ holds the candidates in the same order.
  void Write(Threshold threshold) {
    const bool oldest = args_.tie == TieRule::kOldest;
    // Of the equal keys the first or the last `taken`.
    const int64_t first = oldest ? 0 : threshold.equal - threshold.taken;
    const int64_t end = first + threshold.taken;
    int64_t equal = 0;
    int32_t* out = out_;
    const uint32_t* key = keys_;
    for (int64_t token = 0; token < args_.scores.shape[2]; ++token) {
      bool kept = args_.forced(layer_, head_, token) != 0;
      if (!kept && args_.candidates(layer_, head_, token) != 0) {
        kept = *key > threshold.key;
        if (*key == threshold.key) {
          kept = equal >= first && equal < end;
          ++equal;
        }
        ++key;
      }
      if (kept) *out++ = static_cast<int32_t>(token);
    }
    KVERN_CHECK(out - out_ == count_);
  }

  const TopKArgs& args_;
  const int64_t layer_;
  const int64_t head_;
  int32_t* const out_;
  const int64_t count_;
  uint32_t* keys_ = nullptr;
  int64_t candidates_ = 0;
};

}  // namespace

absl::Status TopK(Runner& runner, const TopKArgs& args, KeepList* keep) {
  KVERN_CHECK(keep->layers == args.scores.shape[0] && keep->kv_heads == args.scores.shape[1]);
  return runner.ForEach(keep->layers * keep->kv_heads, [&](int64_t row, int worker) {
    return RowSelector(args, keep, row).Select(runner, runner.ScratchOf(worker));
  });
}

}  // namespace kvern::cpu
