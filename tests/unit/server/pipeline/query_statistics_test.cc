// Live statistics against the textbook's two passes, and against themselves in other portions.
#include "server/pipeline/query_statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <random>

namespace kvern::pipeline {
namespace {

constexpr int64_t kTokens = 150;  // more than stay near

ModelSpec Model(RopeLayout layout, int64_t bands) {
  ModelSpec model;
  model.num_layers = 2;
  model.q_heads = 3;
  model.kv_heads = 1;
  model.head_dim = 24;
  model.rope.layout = layout;
  for (int64_t band = 0; band < bands; ++band) {
    model.rope.inv_freq.push_back(static_cast<float>(std::pow(1e4, -band / double(bands))));
  }
  return model;
}

// [layers, q_heads, tokens, head_dim] about a large mean, so that what cancels is most of it.
QueryBatch Queries(const ModelSpec& model, int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  QueryBatch batch;
  for (int32_t layer = 0; layer < model.num_layers; ++layer) batch.layers.push_back(layer);
  batch.tokens = tokens;
  for (int64_t at = 0; at < model.num_layers * model.q_heads * tokens * model.head_dim; ++at) {
    batch.queries.push_back(100.0f * static_cast<float>(at % 3) + normal(random));
  }
  return batch;
}

float At(const ModelSpec& model, const QueryBatch& batch, int64_t row, int64_t token, int64_t d) {
  return batch.queries[(row * batch.tokens + token) * model.head_dim + d];
}

// Tokens [first, last) of all rows.
QueryBatch Portion(const ModelSpec& model, const QueryBatch& whole, int64_t first, int64_t last) {
  QueryBatch portion;
  portion.layers = whole.layers;
  portion.tokens = last - first;
  for (int64_t row = 0; row < model.num_layers * model.q_heads; ++row) {
    for (int64_t token = first; token < last; ++token) {
      for (int64_t d = 0; d < model.head_dim; ++d) {
        portion.queries.push_back(At(model, whole, row, token, d));
      }
    }
  }
  return portion;
}

TEST(QueryStatistics, AreThoseOfTwoPasses) {
  const ModelSpec model = Model(RopeLayout::kHalf, 12);
  const QueryBatch batch = Queries(model, kTokens, 1);
  QueryStatistics statistics(model);
  statistics.Add(batch);
  const QueryMoments moments = statistics.Moments();
  const QueryCentres centres = statistics.Centres();
  const int64_t dims = model.head_dim, bands = 12;
  for (int64_t row = 0; row < 6; ++row) {
    std::vector<double> mean(dims);
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t d = 0; d < dims; ++d) mean[d] += At(model, batch, row, t, d) / double(kTokens);
    }
    for (int64_t i = 0; i < dims; ++i) {
      EXPECT_NEAR(moments.mean[row * dims + i], mean[i], 1e-5 * 200);
      for (int64_t j = 0; j < dims; ++j) {
        double cov = 0;
        for (int64_t t = 0; t < kTokens; ++t) {
          cov += (At(model, batch, row, t, i) - mean[i]) * (At(model, batch, row, t, j) - mean[j]);
        }
        EXPECT_NEAR(moments.cov[(row * dims + i) * dims + j], cov / kTokens, 1e-6);
      }
    }
    for (int64_t band = 0; band < bands; ++band) {
      double magnitude = 0;
      for (int64_t t = 0; t < kTokens; ++t) {
        magnitude +=
            std::hypot(At(model, batch, row, t, band), At(model, batch, row, t, band + 12));
      }
      EXPECT_NEAR(centres.abs_mean[row * bands + band], magnitude / kTokens, 1e-4);
      EXPECT_EQ(centres.mean_re[row * bands + band], moments.mean[row * dims + band]);
      EXPECT_EQ(centres.mean_im[row * bands + band], moments.mean[row * dims + band + 12]);
    }
  }
}

TEST(QueryStatistics, PairDimsAsTheLayoutSays) {
  const ModelSpec model = Model(RopeLayout::kInterleaved, 12);
  const QueryBatch batch = Queries(model, 5, 2);
  QueryStatistics statistics(model);
  statistics.Add(batch);
  const QueryCentres centres = statistics.Centres();
  double magnitude = 0;
  for (int64_t t = 0; t < 5; ++t) {
    magnitude += std::hypot(At(model, batch, 4, t, 14), At(model, batch, 4, t, 15)) / 5;
  }
  EXPECT_NEAR(centres.abs_mean[4 * 12 + 7], magnitude, 1e-4);
}

TEST(QueryStatistics, AreTheSameBitsInAnyPortions) {
  const ModelSpec model = Model(RopeLayout::kHalf, 12);
  const QueryBatch batch = Queries(model, kTokens, 3);
  QueryStatistics whole(model);
  whole.Add(batch);
  for (const int64_t portion : {1, 7, 64, 149}) {
    QueryStatistics parts(model);
    for (int64_t first = 0; first < kTokens; first += portion) {
      parts.Add(Portion(model, batch, first, std::min(first + portion, kTokens)));
    }
    EXPECT_EQ(parts.Moments().cov, whole.Moments().cov) << portion;
    EXPECT_EQ(parts.Moments().mean, whole.Moments().mean) << portion;
    EXPECT_EQ(parts.Centres().abs_mean, whole.Centres().abs_mean) << portion;
  }
}

TEST(QueryStatistics, CountTheLayersThatWereSent) {
  const ModelSpec model = Model(RopeLayout::kHalf, 12);
  QueryBatch one;
  one.layers = {1};
  one.tokens = 4;
  one.queries.assign(3 * 4 * 24, 2.0f);
  QueryStatistics statistics(model);
  statistics.Add(one);
  EXPECT_EQ(statistics.LayerTokens(), (std::vector<int64_t>{0, 4}));
  EXPECT_EQ(statistics.LeastTokens(), 0);
  // Nothing is known of layer 0, and all of a layer that never varies.
  EXPECT_EQ(statistics.MeanErrors(), (std::vector<float>{1, 1, 1, 0, 0, 0}));
}

TEST(QueryStatistics, TellHowWellTheMeanIsKnown) {
  ModelSpec model = Model(RopeLayout::kHalf, 12);
  model.q_heads = model.kv_heads = model.num_layers = 1;
  QueryBatch batch;
  batch.layers = {0};
  batch.tokens = 400;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (int64_t at = 0; at < 400 * 24; ++at) batch.queries.push_back(normal(random));
  QueryStatistics statistics(model);
  statistics.Add(batch);
  // Of noise about 0 the mean's error is its own size: 1 / sqrt(n) of the rms.
  EXPECT_NEAR(statistics.MeanErrors()[0], 1 / std::sqrt(399.0), 2e-3);
}

TEST(QueryStatistics, TurnBackUndoesTheRotation) {
  for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    ModelSpec model = Model(layout, 8);  // dims 16..23 are not rotated
    model.rope.attention_scaling = 1.25;
    const QueryBatch plain = Queries(model, 6, 5);
    const std::vector<int32_t> positions = {0, 70000, 3, 3, 12, 1};
    QueryBatch rotated = plain;
    for (int64_t row = 0; row < 6 * 6; ++row) {
      float* query = rotated.queries.data() + row * model.head_dim;
      for (int64_t band = 0; band < 8; ++band) {
        const bool half = layout == RopeLayout::kHalf;
        float& x = query[half ? band : 2 * band];
        float& y = query[half ? band + 8 : 2 * band + 1];
        const std::complex<double> turned =
            std::complex<double>(x, y) *
            std::polar(1.25, double{model.rope.inv_freq[band]} * positions[row % 6]);
        x = static_cast<float>(turned.real());
        y = static_cast<float>(turned.imag());
      }
    }
    ASSERT_NE(rotated.queries, plain.queries);
    TurnBack(model, positions, &rotated);
    for (size_t at = 0; at < plain.queries.size(); ++at) {
      EXPECT_NEAR(rotated.queries[at], plain.queries[at], 1e-4) << at;
    }
  }
}

}  // namespace
}  // namespace kvern::pipeline
