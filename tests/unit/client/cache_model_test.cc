// Models from files: live frequencies win, scaling follows the published formulas.
#include "client/cpp/cache_model.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/client/small_cache.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::client {
namespace {

using ::testing::HasSubstr;

class CacheModelTest : public TemporaryFiles {};

TEST_F(CacheModelTest, ReadsGeometryAndLiveFrequenciesOfTheSample) {
  const auto cache = CacheFile::Open(KVERN_TEST_DATA "/pride-1024.safetensors");
  ASSERT_TRUE(cache.ok()) << cache.status();
  const auto model = ModelOf(*cache);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->spec().num_layers(), 30);
  EXPECT_EQ(model->spec().q_heads(), 9);
  EXPECT_EQ(model->spec().kv_heads(), 3);
  EXPECT_EQ(model->spec().rope().rotary_dim(), 64);
  ASSERT_EQ(model->spec().rope().inv_freq_size(), 32);
  EXPECT_EQ(model->spec().rope().inv_freq(0), 1.0f);
  EXPECT_TRUE(model->name().empty());
}

TEST_F(CacheModelTest, ComputesTheSampleFrequenciesFromThetaAlone) {
  const auto cache = CacheFile::Open(KVERN_TEST_DATA "/qwen-512.safetensors");
  ASSERT_TRUE(cache.ok()) << cache.status();
  const auto live = ModelOf(*cache);
  const auto computed = InverseFrequencies({.theta = 1e6, .rotary_dim = 64, .scaling = ""});
  ASSERT_TRUE(live.ok() && computed.ok());
  for (int band = 0; band < 32; ++band) {
    // The file's were computed in f32.
    EXPECT_NEAR((*computed)[band] / live->spec().rope().inv_freq(band), 1, 1e-6) << band;
  }
}

TEST_F(CacheModelTest, LeavesRopeUnknownWithoutFrequenciesAndTheta) {
  const SmallCache small;
  formats::Safetensors file = small.File();
  file.metadata.erase("rope_theta");
  const auto cache = CacheFile::Open(Write("a", file));
  ASSERT_TRUE(cache.ok());
  const auto model = ModelOf(*cache);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_FALSE(model->spec().has_rope());
}

TEST_F(CacheModelTest, CountsLayersUpToTheHighestIndex) {
  const SmallCache small;
  const std::vector<int32_t> layers = {3, 11};
  formats::Safetensors file = small.File();
  file.tensors["layer_indices"] = {"I32", {2}, SmallCache::Bytes(layers)};
  const auto cache = CacheFile::Open(Write("a", file));
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ(ModelOf(*cache)->spec().num_layers(), 12);
}

TEST_F(CacheModelTest, RefusesMetadataThatContradictsTheTensors) {
  const SmallCache small;
  formats::Safetensors file = small.File();
  file.metadata["kv_heads"] = "7";
  const auto cache = CacheFile::Open(Write("a", file));
  ASSERT_TRUE(cache.ok());
  EXPECT_THAT(std::string(ModelOf(*cache).status().message()), HasSubstr("kv_heads"));
}

TEST_F(CacheModelTest, CutsALongNameBetweenCharacters) {
  const SmallCache small;
  formats::Safetensors file = small.File();
  file.metadata["model"] = std::string(255, 'x') + "é";
  const auto cache = CacheFile::Open(Write("a", file));
  ASSERT_TRUE(cache.ok());
  EXPECT_EQ(ModelOf(*cache)->spec().display_name(), std::string(255, 'x'));
}

TEST(InverseFrequencies, DividesAllBandsWhenLinear) {
  const auto plain = InverseFrequencies({.theta = 1e4, .rotary_dim = 16, .scaling = "{}"});
  const auto linear = InverseFrequencies(
      {.theta = 1e4, .rotary_dim = 16, .scaling = R"({"type": "linear", "factor": 4.0})"});
  ASSERT_TRUE(plain.ok() && linear.ok());
  for (int band = 0; band < 8; ++band) EXPECT_FLOAT_EQ((*linear)[band], (*plain)[band] / 4);
}

TEST(InverseFrequencies, StretchesOnlyLongWavesOfLlama3) {
  const std::string scaling =
      R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192})";
  const auto plain = InverseFrequencies({.theta = 5e5, .rotary_dim = 128, .scaling = ""});
  const auto scaled = InverseFrequencies({.theta = 5e5, .rotary_dim = 128, .scaling = scaling});
  ASSERT_TRUE(plain.ok() && scaled.ok()) << scaled.status();
  EXPECT_EQ((*scaled)[0], (*plain)[0]);
  EXPECT_FLOAT_EQ((*scaled)[63], (*plain)[63] / 8);
  bool blended = false;
  for (int band = 0; band < 64; ++band) {
    const float ratio = (*plain)[band] / (*scaled)[band];
    EXPECT_GE(ratio, 1.0f);
    EXPECT_LE(ratio, 8.0f * (1 + 1e-6f));
    blended = blended || (ratio > 1.1f && ratio < 7.9f);
  }
  EXPECT_TRUE(blended);
}

TEST(InverseFrequencies, PointsToLiveFrequenciesForScalingsItCannotCompute) {
  const auto yarn = InverseFrequencies(
      {.theta = 1e4, .rotary_dim = 16, .scaling = R"({"rope_type": "yarn", "factor": 4.0})"});
  EXPECT_TRUE(absl::IsInvalidArgument(yarn.status()));
  EXPECT_THAT(std::string(yarn.status().message()), HasSubstr("inv_freq"));
}

TEST(InverseFrequencies, NamesAMissingParameter) {
  const auto linear =
      InverseFrequencies({.theta = 1e4, .rotary_dim = 16, .scaling = R"({"rope_type": "linear"})"});
  EXPECT_THAT(std::string(linear.status().message()), HasSubstr("factor"));
}

TEST(InverseFrequencies, RefusesTextThatIsNoJson) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      InverseFrequencies({.theta = 1e4, .rotary_dim = 16, .scaling = "{linear"}).status()));
}

}  // namespace
}  // namespace kvern::client
