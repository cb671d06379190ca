// Two rounds with tokens appended in between: positions, epochs, slots and prefixes that a caller
// tracks by hand are those the server tells, in both position modes.
#include <gmock/gmock.h>

#include <cmath>
#include <numeric>

#include "tests/integration/equality/wire_sequence.h"

namespace kvern::equality {
namespace {

using testing::ElementsAreArray;

constexpr int64_t kRows = kLayers * kKvHeads;
constexpr int64_t kFirst = 50, kAfterFirst = 30, kAppended = 11;
constexpr int64_t kSecond = kAfterFirst + kAppended, kAfterSecond = 19;

// One sequence as its frontend knows it.
struct Tracked {
  Cache cache;
  std::vector<std::vector<int32_t>> positions;  // per row
  int64_t logical = 0;
  uint64_t epoch = 0;
  std::vector<uint32_t> blocks;
};

std::string Row(const std::string& plane, int64_t tokens, int64_t row, int64_t token) {
  return plane.substr((row * tokens + token) * kRowBytes, kRowBytes);
}

// A bf16 key turned by `ahead` positions, in double.
std::vector<double> Turned(const std::string& row, int64_t ahead) {
  std::vector<double> key(kHeadDim);
  for (int64_t d = 0; d < kHeadDim; ++d) {
    BFloat16 element;
    std::memcpy(&element, row.data() + 2 * d, sizeof(element));
    key[d] = ToFloat(element);
  }
  std::vector<double> turned(kHeadDim);
  for (int64_t band = 0; band < kHeadDim / 2; ++band) {
    const double angle =
        std::pow(10000.0, -2.0 * static_cast<double>(band) / kHeadDim) * static_cast<double>(ahead);
    const double x = key[band], y = key[band + kHeadDim / 2];
    turned[band] = x * std::cos(angle) - y * std::sin(angle);
    turned[band + kHeadDim / 2] = x * std::sin(angle) + y * std::cos(angle);
  }
  return turned;
}

class Rounds : public WireTest, public testing::WithParamInterface<int> {
 protected:
  bool Renumbers() const { return GetParam() % 2 == 1; }
  v1::Placement Place() const {
    return GetParam() < 2 ? v1::PLACEMENT_COPY_TO : v1::PLACEMENT_COMPACT;
  }

  v1::CompressCacheRequest RequestOf(const Tracked& sequence, int64_t budget) {
    v1::CompressCacheRequest request = Request(budget, Place());
    v1::Policy* policy = request.mutable_policy();
    policy->set_sink_tokens(17);  // more than a block of the prefix stays where it is
    policy->set_positions(Renumbers() ? v1::POSITION_MODE_RENUMBER
                                      : v1::POSITION_MODE_KEEP_LOGICAL);
    policy->mutable_scorers(0)->set_name("keydiff");
    (*policy->mutable_scorers(0)->mutable_params())["unrotate"] = "true";
    Table table = {sequence.blocks, {}, sequence.cache.tokens};
    if (Place() == v1::PLACEMENT_COPY_TO) {
      table.destination = *pool_->AllocateBlocks(pool_->BlocksFor(budget) + 1);
    }
    AddPaged("rounds", table, &request)->set_epoch(sequence.epoch);
    return request;
  }

  // Checks the answer against what is tracked, and tracks on.
  void Follow(const v1::SequenceResult& result, int64_t budget, Tracked* sequence) {
    ASSERT_EQ(result.outcome(), v1::OUTCOME_APPLIED) << client::SequenceStatus(result);
    EXPECT_EQ(result.epoch(), sequence->epoch + 1);
    EXPECT_EQ(result.num_physical_tokens(), budget);
    EXPECT_EQ(result.num_dropped_tokens(), sequence->logical - budget);
    EXPECT_EQ(result.num_logical_tokens(), Renumbers() ? budget : sequence->logical);
    const uint32_t next_block = result.block_ids(static_cast<int>(budget / kBlockTokens));
    EXPECT_EQ(result.next_slot(), uint64_t{next_block} * kBlockTokens + budget % kBlockTokens);
    const std::vector<int32_t> kept = Ints(result.kept()), told = Ints(result.positions());
    Tracked after;
    after.blocks.assign(result.block_ids().begin(), result.block_ids().end());
    after.cache = Read(after.blocks, budget);
    int64_t unmoved = budget;
    for (int64_t row = 0; row < kRows; ++row) {
      std::vector<int32_t>& positions = after.positions.emplace_back();
      for (int64_t slot = 0; slot < budget; ++slot) {
        const int64_t token = kept[row * budget + slot];
        const int32_t before = sequence->positions[row][token];
        positions.push_back(Renumbers() ? static_cast<int32_t>(slot) : before);
        if (token != slot || (Renumbers() && before != slot)) unmoved = std::min(unmoved, slot);
        EXPECT_EQ(Row(after.cache.v, budget, row, slot),
                  Row(sequence->cache.v, sequence->cache.tokens, row, token));
        ExpectKey(Row(after.cache.k, budget, row, slot),
                  Row(sequence->cache.k, sequence->cache.tokens, row, token),
                  positions.back() - before);
      }
      EXPECT_THAT(
          std::vector<int32_t>(told.begin() + row * budget, told.begin() + (row + 1) * budget),
          ElementsAreArray(positions));
    }
    const bool copies = Place() == v1::PLACEMENT_COPY_TO;
    EXPECT_GE(unmoved, kBlockTokens);
    EXPECT_EQ(result.publishable_prefix_tokens(), copies ? 0 : unmoved - unmoved % kBlockTokens);
    after.logical = result.num_logical_tokens();
    after.epoch = result.epoch();
    *sequence = std::move(after);
  }

  static void ExpectKey(const std::string& got, const std::string& source, int64_t ahead) {
    if (ahead == 0) {
      EXPECT_EQ(got, source);
      return;
    }
    const std::vector<double> is = Turned(got, 0), want = Turned(source, ahead);
    for (int64_t d = 0; d < kHeadDim; ++d) {
      EXPECT_NEAR(is[d], want[d], 0.005 * (1 + std::fabs(want[d])));  // bf16 rounds at 2^-9
    }
  }

  // What a frontend does between two rounds.
  void Append(Tracked* sequence) {
    const Cache more = RandomCache(kAppended, 77);
    const Cache before = sequence->cache;
    Cache longer;
    longer.tokens = before.tokens + kAppended;
    for (int64_t row = 0; row < kRows; ++row) {
      longer.k += before.k.substr(row * before.tokens * kRowBytes, before.tokens * kRowBytes) +
                  more.k.substr(row * kAppended * kRowBytes, kAppended * kRowBytes);
      longer.v += before.v.substr(row * before.tokens * kRowBytes, before.tokens * kRowBytes) +
                  more.v.substr(row * kAppended * kRowBytes, kAppended * kRowBytes);
      for (int64_t at = 0; at < kAppended; ++at) {
        sequence->positions[row].push_back(static_cast<int32_t>(sequence->logical + at));
      }
    }
    sequence->cache = longer;
    sequence->logical += kAppended;
    const auto needed = static_cast<size_t>(pool_->BlocksFor(longer.tokens));
    while (sequence->blocks.size() < needed) {
      sequence->blocks.push_back(pool_->AllocateBlocks(1)->at(0));
    }
    ASSERT_TRUE(pool_->Write(longer.View(), sequence->blocks).ok());
  }

  Tracked Begin() {
    Tracked sequence;
    sequence.cache = RandomCache(kFirst, 71);
    sequence.blocks = Write(sequence.cache).source;
    sequence.positions.assign(kRows, std::vector<int32_t>(kFirst));
    for (auto& row : sequence.positions) std::iota(row.begin(), row.end(), 0);
    sequence.logical = kFirst;
    return sequence;
  }
};

TEST_P(Rounds, FollowFromEachOtherWithoutPositionsSent) {
  Tracked sequence = Begin();
  ASSERT_NO_FATAL_FAILURE(Follow(Run(RequestOf(sequence, kAfterFirst)), kAfterFirst, &sequence));
  Append(&sequence);
  ASSERT_EQ(sequence.logical, (Renumbers() ? kAfterFirst : kFirst) + kAppended);
  ASSERT_NO_FATAL_FAILURE(Follow(Run(RequestOf(sequence, kAfterSecond)), kAfterSecond, &sequence));
  ASSERT_TRUE(client_->ReleaseSequences({"rounds"}).ok());
}

TEST_P(Rounds, FollowFromEachOtherInTwoPhases) {
  Tracked sequence = Begin();
  for (const int64_t budget : {kAfterFirst, kAfterSecond}) {
    v1::PlanCompressionRequest plan;
    *plan.mutable_compression() = RequestOf(sequence, budget);
    const auto planned = client_->PlanCompression(plan);
    ASSERT_TRUE(planned.ok()) << planned.status();
    v1::ApplyCompressionRequest apply;
    apply.set_plan(planned->plan());
    apply.add_sequences()->set_sequence_id("rounds");
    apply.mutable_sequences(0)->set_epoch(sequence.epoch);
    const auto applied = client_->ApplyCompression(apply);
    ASSERT_TRUE(applied.ok()) << applied.status();
    ASSERT_NO_FATAL_FAILURE(Follow(applied->results(0), budget, &sequence));
    Append(&sequence);
  }
  ASSERT_TRUE(client_->ReleaseSequences({"rounds"}).ok());
}

INSTANTIATE_TEST_SUITE_P(EveryModeAndPlacement, Rounds, testing::Range(0, 4));

}  // namespace
}  // namespace kvern::equality
