// Figures of a plan that is applied to a sequence which grew meanwhile.
#include "server/engine/report.h"

#include <gtest/gtest.h>

namespace kvern::engine {
namespace {

TEST(DescribePlan, CountsTheMassOfPlannedTokensOnly) {
  constexpr int64_t kHeads = 2, kPlanned = 4, kAppended = 3, kNow = kPlanned + kAppended;
  pipeline::ModelSpec model;
  model.kv_heads = kHeads;
  model.head_dim = 64;
  pipeline::SideTensors side;
  side.attention_mass = {1, 2, 3, 4, 5, 6, 7, 8};  // [1, kHeads, kPlanned]
  BoundSource source;
  source.input.model = &model;
  source.input.side = &side;
  source.input.calibrations = &source.calibrations;
  source.input.keys.push_back(DenseKvRef(DType::kBF16, nullptr, kHeads, kNow, model.head_dim));
  source.input.values = source.input.keys;
  source.input.layer_indices = {0};
  source.input.logical_tokens = kNow;
  pipeline::KeepPlan plan;
  plan.counts.counts = {4, 4};
  plan.max_kept = 4;
  plan.keep = KeepList::WithCounts(
      DenseView(static_cast<const int32_t*>(plan.counts.counts.data()), 1, kHeads));
  plan.keep.tokens = {0, 4, 5, 6, 3, 4, 5, 6};  // one planned token of each head
  SequenceResult result;
  DescribePlan(source, pipeline::ResolvedPolicy(), plan, &result);
  ASSERT_TRUE(result.kept_attention_mass.has_value());
  EXPECT_EQ(*result.kept_attention_mass, (1.0 + 8.0) / 36.0);
}

}  // namespace
}  // namespace kvern::engine
