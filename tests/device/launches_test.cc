// One launch per stage: how many a call makes does not depend on how much it is given.
#include <map>
#include <set>

#include "tests/device/device_fixture.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

class Launches : public DeviceTest {
 protected:
  // Sequences of 10, 11, 12, ... tokens, each in blocks of its own.
  static std::vector<SequenceJob> Some(int count) {
    std::vector<SequenceJob> sequences;
    for (int at = 0; at < count; ++at) {
      SequenceJob sequence;
      sequence.sequence_id = absl::StrCat("s", at);
      PagedSource paged;
      paged.pool = "pool";
      paged.num_tokens = 10 + at;
      const auto first = static_cast<uint32_t>(6 * at);
      paged.block_ids = {first, first + 1, first + 2, first + 3};
      paged.block_ids.resize((paged.num_tokens + kBlockTokens - 1) / kBlockTokens);
      paged.destination_block_ids = {first + 4, first + 5};
      sequence.source = paged;
      sequences.push_back(sequence);
    }
    return sequences;
  }

  int64_t LaunchesOf(const pipeline::Policy& policy, int sequences) {
    Restart();
    const int64_t before = simt::LaunchCount();
    const auto answer = engine_->CompressAndWait(Job(policy, Some(sequences)));
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer.ok()) {
      for (const SequenceResult& result : answer->results) {
        EXPECT_EQ(result.outcome, Outcome::kApplied) << result.status;
      }
    }
    return simt::LaunchCount() - before;
  }
};

TEST_F(Launches, DoNotGrowWithSequences) {
  for (const Placement placement :
       {Placement::kCopyTo, Placement::kCompact, Placement::kToStore, Placement::kIndicesOnly}) {
    SCOPED_TRACE(static_cast<int>(placement));
    pipeline::Policy policy = With({{"keydiff", {{"unrotate", "true"}}}}, placement);
    if (placement == Placement::kToStore) {
      policy.k_codec = "i8t+rm";
      policy.v_codec = "lm4";
    }
    const int64_t one = LaunchesOf(policy, 1);
    EXPECT_GT(one, 0);
    EXPECT_LE(one, 12);
    EXPECT_EQ(LaunchesOf(policy, 6), one);
  }
}

// Every scorer, blend, selector, codec and placement.
TEST_F(Launches, OfEveryCanonicalRequestAreAtMostTwelve) {
  for (const CanonicalJob& canonical : CanonicalJobs()) {
    SCOPED_TRACE(canonical.name);
    Restart();
    const int64_t before = simt::LaunchCount();
    const auto answer = engine_->CompressAndWait(canonical.job);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->results.at(0).outcome, Outcome::kApplied) << answer->results.at(0).status;
    const int64_t launches = simt::LaunchCount() - before;
    EXPECT_GT(launches, 0);
    EXPECT_LE(launches, 12);
  }
}

// Launches of one op after the other on a cache of this many layers and heads.
std::vector<int64_t> LaunchesOn(Backend& backend, int64_t layers, int64_t kv_heads) {
  support::HostKvSpec spec;
  spec.layers = layers;
  spec.kv_heads = kv_heads;
  spec.tokens = 300;
  const support::HostKv keys = support::RandomKv(spec, /*seed=*/1);
  std::vector<float> memory(layers * kv_heads * spec.tokens);
  const ScoreView scores = DenseView(memory.data(), layers, kv_heads, spec.tokens);
  const std::vector<uint8_t> all(memory.size(), 1), none(memory.size(), 0);
  const MaskView every = support::MaskOf(spec, all), nobody = support::MaskOf(spec, none);
  const std::vector<int32_t> counts(layers * kv_heads, 40);
  KeepList keep = KeepList::WithCounts(DenseView(counts.data(), layers, kv_heads));
  const RotationTable rotation = support::RotationOf(RopeLayout::kHalf, 32, spec.tokens);
  std::vector<Float16> mean(layers * kv_heads * spec.head_dim);
  const std::vector<float> u = support::RandomFloats(layers * kv_heads * spec.head_dim, /*seed=*/2);
  TriAttentionArgs tri;
  tri.keys = keys.refs();
  tri.bands = 32;
  tri.q_heads = static_cast<int32_t>(kv_heads);
  tri.u = DenseView(u.data(), layers, kv_heads, int64_t{1}, spec.head_dim);
  tri.w = DenseView(u.data(), layers, kv_heads, int64_t{32});
  tri.candidates = every;
  support::HostKv out = support::RandomKv(spec, /*seed=*/3);
  const std::vector<std::function<absl::Status()>> ops = {
      [&] { return backend.RowNorms(keys.refs(), scores); },
      [&] { return backend.TriAttention(tri, scores); },
      [&] {
        return backend.KeyDiff({.keys = keys.refs(), .unrotate = &rotation, .alive = every},
                               scores);
      },
      [&] { return backend.ZScore(every, scores); },
      [&] {
        return backend.TopK({.scores = scores, .candidates = every, .forced = nobody}, &keep);
      },
      [&] {
        return backend.MeanKey({.keys = keys.refs(), .rotation = &rotation, .counted = every},
                               DenseView(mean.data(), layers, kv_heads, spec.head_dim));
      },
      [&] { return backend.Gather({.in = keys.refs(), .keep = &keep, .out = out.refs()}); },
  };
  std::vector<int64_t> launches;
  for (const auto& op : ops) {
    const int64_t before = simt::LaunchCount();
    const absl::Status status = op();
    EXPECT_TRUE(status.ok()) << status;
    launches.push_back(simt::LaunchCount() - before);
  }
  return launches;
}

TEST(OpLaunches, DoNotGrowWithLayersAndHeads) {
  const auto backend = MakeBackend({.name = "cuda", .scratch_bytes = int64_t{64} << 20}).value();
  const std::vector<int64_t> small = LaunchesOn(*backend, 1, 1);
  EXPECT_EQ(small, (std::vector<int64_t>{1, 3, 3, 1, 1, 2, 1}));
  EXPECT_EQ(LaunchesOn(*backend, 3, 5), small);
}

}  // namespace
}  // namespace kvern::engine
