// Hands every op to its own file, after one choice of instruction set.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstdint>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"
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

// Sequence after sequence, up to the first that fails.
template <class Args, class Op>
absl::Status ForEach(std::span<const Args> cohort, Op op) {
  for (const Args& args : cohort) KVERN_RETURN_IF_ERROR(op(args));
  return absl::OkStatus();
}

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

absl::Status CpuBackend::RowNorms(std::span<const RowNormsArgs> cohort) {
  return ForEach(cohort, [&](const RowNormsArgs& args) {
    return cpu::RowNorms(runner_, args.rows, args.norms);
  });
}
absl::Status CpuBackend::TriAttention(std::span<const TriAttentionArgs> cohort) {
  return ForEach(cohort,
                 [&](const TriAttentionArgs& args) { return cpu::TriAttention(runner_, args); });
}
absl::Status CpuBackend::ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) {
  return ForEach(cohort, [&](const ExpectedAttentionArgs& args) {
    return cpu::ExpectedAttention(runner_, args, args.scores);
  });
}
absl::Status CpuBackend::WindowAttention(std::span<const WindowAttentionArgs> cohort) {
  return ForEach(cohort, [&](const WindowAttentionArgs& args) {
    return cpu::WindowAttention(runner_, args, args.scores);
  });
}
absl::Status CpuBackend::KeyDiff(std::span<const KeyDiffArgs> cohort) {
  return ForEach(cohort, [&](const KeyDiffArgs& args) { return cpu::KeyDiff(runner_, args); });
}
absl::Status CpuBackend::AttentionMass(std::span<const AttentionMassArgs> cohort) {
  return ForEach(cohort, [&](const AttentionMassArgs& args) {
    return cpu::AttentionMass(runner_, args, args.scores);
  });
}
absl::Status CpuBackend::ZScore(std::span<const ZScoreArgs> cohort) {
  return ForEach(cohort, [&](const ZScoreArgs& args) {
    return cpu::ZScore(runner_, args.candidates, args.scores);
  });
}
absl::Status CpuBackend::Scale(float factor, std::span<const ScoreView> cohort) {
  return ForEach(cohort, [&](ScoreView scores) { return cpu::Scale(runner_, factor, scores); });
}
absl::Status CpuBackend::Blend(std::span<const BlendArgs> cohort) {
  return ForEach(cohort, [&](const BlendArgs& args) {
    return cpu::Blend(runner_, args.kind, args.scores, args.accumulated);
  });
}
absl::Status CpuBackend::ShareRows(std::span<const ShareRowsArgs> cohort) {
  return ForEach(cohort, [&](const ShareRowsArgs& args) {
    return cpu::ShareRows(runner_, *args.groups, args.reduce, args.scores);
  });
}
absl::Status CpuBackend::HideScores(std::span<const HideScoresArgs> cohort) {
  return ForEach(cohort,
                 [&](const HideScoresArgs& args) { return cpu::HideScores(runner_, args); });
}
absl::Status CpuBackend::TopK(std::span<const TopKArgs> cohort) {
  return ForEach(cohort, [&](const TopKArgs& args) { return cpu::TopK(runner_, args, args.keep); });
}
absl::Status CpuBackend::Diverse(std::span<const DiverseArgs> cohort) {
  return ForEach(cohort,
                 [&](const DiverseArgs& args) { return cpu::Diverse(runner_, args, args.keep); });
}
absl::Status CpuBackend::MeanKey(std::span<const MeanKeyArgs> cohort) {
  return ForEach(cohort,
                 [&](const MeanKeyArgs& args) { return cpu::MeanKey(runner_, args, args.mean); });
}
absl::Status CpuBackend::Encode(std::span<const EncodeArgs> cohort) {
  return ForEach(cohort,
                 [&](const EncodeArgs& args) { return cpu::Encode(runner_, args, args.counts); });
}
absl::Status CpuBackend::Decode(std::span<const DecodeArgs> cohort) {
  return ForEach(cohort, [&](const DecodeArgs& args) { return cpu::Decode(runner_, args); });
}
absl::Status CpuBackend::Gather(std::span<const GatherArgs> cohort) {
  return ForEach(cohort, [&](const GatherArgs& args) { return cpu::Gather(runner_, args); });
}

}  // namespace kvern::cpu
