// Sequences that are scored together: every backend leaves what ref leaves of each of them alone.
#ifndef KVERN_TESTS_PARITY_SCORE_COHORT_H_
#define KVERN_TESTS_PARITY_SCORE_COHORT_H_

#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <vector>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {

// Sequences of every length around a 256-token tile, none among them, that differ in layers, in
// blocks and in what each head holds. Dtype, head_dim, layout and kv_heads (at least two) are those
// of `kind`.
inline std::vector<HostKvSpec> RaggedSpecs(const HostKvSpec& kind) {
  std::vector<HostKvSpec> specs;
  for (const int32_t tokens : {257, 1, 0, 40, 600, 256}) {
    HostKvSpec spec = kind;
    spec.tokens = tokens;
    spec.layers = 1 + static_cast<int64_t>(specs.size() % 2);
    spec.block_tokens = specs.size() % 2 == 0 ? 16 : 32;
    spec.order = BlockOrder::kShuffled;
    if (tokens > 250) {
      spec.lengths.assign(kind.kv_heads, tokens);
      spec.lengths[0] = tokens - 250;
    }
    specs.push_back(spec);
  }
  return specs;
}

// `score` is the op; args[i] belong to specs[i], their scores are filled in.
template <class Args>
void ExpectScoreCohortParity(std::span<const HostKvSpec> specs, std::vector<Args> args,
                             absl::Status (Backend::*score)(std::span<const Args>)) {
  std::vector<std::vector<float>> want;
  ForEachBackend([&](Backend& backend) {
    std::deque<GuardedBuffer<float>> outputs;
    for (size_t i = 0; i < args.size(); ++i) {
      const HostKvSpec& spec = specs[i];
      outputs.emplace_back(spec.layers * spec.kv_heads * spec.tokens);
      args[i].scores = DenseView(outputs[i].data(), spec.layers, spec.kv_heads, spec.tokens);
    }
    const bool alone = want.empty();
    if (alone) {
      for (const Args& one : args) ASSERT_TRUE((backend.*score)(std::span(&one, 1)).ok());
    } else {
      ASSERT_TRUE((backend.*score)(args).ok());
    }
    for (size_t i = 0; i < args.size(); ++i) {
      SCOPED_TRACE(Describe(specs[i]));
      EXPECT_TRUE(outputs[i].Intact()) << "write past the output";
      const float* scores = outputs[i].data();
      if (alone) {
        want.emplace_back(scores, scores + outputs[i].size());
        continue;
      }
      for (size_t at = 0; at < want[i].size(); ++at) {
        if (std::memcmp(&want[i][at], scores + at, sizeof(float)) == 0) continue;
        ADD_FAILURE() << "score " << at << ": got " << scores[at] << ", ref " << want[i][at];
        return;
      }
    }
  });
}

}  // namespace kvern::support

#endif  // KVERN_TESTS_PARITY_SCORE_COHORT_H_
