// Hands every op to its own file, after one choice of instruction set.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdint>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/attention_mass.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/diverse.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/encode.h"
#include "kernels/cpu/expected_attention.h"
#include "kernels/cpu/gather.h"
#include "kernels/cpu/key_diff.h"
#include "kernels/cpu/mean_key.h"
#include "kernels/cpu/row_norms.h"
#include "kernels/cpu/share_rows.h"
#include "kernels/cpu/targets.h"
#include "kernels/cpu/top_k.h"
#include "kernels/cpu/tri_attention.h"
#include "kernels/cpu/window_attention.h"
#include "kernels/cpu/z_score.h"
// After targets.h, which says what is built.
#include "hwy/highway.h"

namespace kvern::cpu {
namespace {

struct TargetName {
  const char* name;
  int64_t target;
};
// Worst first.
constexpr TargetName kTargets[] = {
#if HWY_ARCH_X86
    {"avx2", HWY_AVX2},
    {"avx3", HWY_AVX3},
#else
    {"neon", HWY_NEON},
#endif
};

// What processor and build have, whatever an earlier backend chose.
int64_t AvailableTargets() {
  hwy::SetSupportedTargetsForTest(0);
  return hwy::SupportedTargets() & HWY_TARGETS;
}

}  // namespace

std::vector<std::string> InstructionSets() {
  static const std::vector<std::string>* const sets = [] {
    auto* names = new std::vector<std::string>;
    const int64_t available = AvailableTargets();
    for (const TargetName& known : kTargets) {
      if ((available & known.target) != 0) names->push_back(known.name);
    }
    return names;
  }();
  return *sets;
}

absl::StatusOr<std::unique_ptr<CpuBackend>> CpuBackend::Make(const std::string& instruction_set,
                                                             int threads) {
  const std::vector<std::string> sets = InstructionSets();
  const std::string& wanted = instruction_set == "auto" ? sets.back() : instruction_set;
  const auto known = std::find_if(std::begin(kTargets), std::end(kTargets),
                                  [&](const TargetName& entry) { return wanted == entry.name; });
  if (known == std::end(kTargets)) {
    return absl::InvalidArgumentError(absl::StrCat("instruction set: got ", instruction_set,
                                                   ", want auto, ", absl::StrJoin(sets, ", ")));
  }
  if (std::find(sets.begin(), sets.end(), wanted) == sets.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat("instruction set ", wanted, ": this machine has ", absl::StrJoin(sets, ", ")));
  }
  hwy::SetSupportedTargetsForTest(known->target);
  if (threads <= 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::unique_ptr<CpuBackend>(new CpuBackend(wanted, threads));
}

absl::Status CpuBackend::RowNorms(LayerRefs rows, ScoreView norms) {
  return cpu::RowNorms(runner_, rows, norms);
}
absl::Status CpuBackend::TriAttention(const TriAttentionArgs& args, ScoreView scores) {
  return cpu::TriAttention(runner_, args, scores);
}
absl::Status CpuBackend::ExpectedAttention(const ExpectedAttentionArgs& args, ScoreView scores) {
  return cpu::ExpectedAttention(runner_, args, scores);
}
absl::Status CpuBackend::WindowAttention(const WindowAttentionArgs& args, ScoreView scores) {
  return cpu::WindowAttention(runner_, args, scores);
}
absl::Status CpuBackend::KeyDiff(const KeyDiffArgs& args, ScoreView scores) {
  return cpu::KeyDiff(runner_, args, scores);
}
absl::Status CpuBackend::AttentionMass(const AttentionMassArgs& args, ScoreView scores) {
  return cpu::AttentionMass(runner_, args, scores);
}
absl::Status CpuBackend::ZScore(MaskView candidates, ScoreView scores) {
  return cpu::ZScore(runner_, candidates, scores);
}
absl::Status CpuBackend::Scale(float factor, ScoreView scores) {
  return cpu::Scale(runner_, factor, scores);
}
absl::Status CpuBackend::Blend(BlendKind kind, ConstScoreView scores, ScoreView accumulated) {
  return cpu::Blend(runner_, kind, scores, accumulated);
}
absl::Status CpuBackend::ShareRows(const std::vector<std::vector<int64_t>>& groups,
                                   GroupReduce reduce, ScoreView scores) {
  return cpu::ShareRows(runner_, groups, reduce, scores);
}
absl::Status CpuBackend::TopK(const TopKArgs& args, KeepList* keep) {
  return cpu::TopK(runner_, args, keep);
}
absl::Status CpuBackend::Diverse(const DiverseArgs& args, KeepList* keep) {
  return cpu::Diverse(runner_, args, keep);
}
absl::Status CpuBackend::MeanKey(const MeanKeyArgs& args, TensorView<Float16, 3> mean) {
  return cpu::MeanKey(runner_, args, mean);
}
absl::Status CpuBackend::Encode(const EncodeArgs& args, EncodeCounts* counts) {
  return cpu::Encode(runner_, args, counts);
}
absl::Status CpuBackend::Decode(const DecodeArgs& args) { return cpu::Decode(runner_, args); }
absl::Status CpuBackend::Gather(const GatherArgs& args) { return cpu::Gather(runner_, args); }

}  // namespace kvern::cpu
