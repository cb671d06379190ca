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

}  // namespace
}  // namespace kvern::engine
