// Parts of policies as ruling 2 reads them, and what each changes in the result.
#include <algorithm>
#include <numbers>
#include <set>

#include "tests/integration/command_line/command_line.h"
#include "tests/unit/client/small_cache.h"

namespace kvern {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

class CommandLinePolicy : public CommandLineTest {
 protected:
  Result Local(const std::string& input, const std::string& name, const Words& how) const {
    return Compress(input, name, how + Words{"--local"});
  }
  std::string Refusal(const Words& how) const {
    return Kvern(Words{"compress", kQwen, "-o", PathOf("refused"), "--local"} + how, 1).err;
  }
};

TEST_F(CommandLinePolicy, FillsUngivenPartsWithPlainOnes) {
  const Result result = Local(kQwen, "a", {"--keep-ratio", "0.5", "--scorer", "keydiff"});
  const auto& resolved = result.said["resolved"];
  EXPECT_EQ(resolved["budgeter"], "uniform");
  EXPECT_EQ(resolved["scorer"], "keydiff");
  EXPECT_EQ(resolved["selector"], "topk");
  EXPECT_EQ(resolved["k_codec"], "raw16");
  EXPECT_EQ(resolved["v_codec"], "raw16");
  Local(kQwen, "b",
        {"--keep-ratio", "0.5", "--scorer", "keydiff", "--budgeter", "uniform", "--selector",
         "topk", "--codec", "raw16", "--sink", "4", "--recent", "32", "--recent-share", "0.5",
         "--positions", "keep"});
  EXPECT_TRUE(Read("a") == Read("b"));
}

TEST_F(CommandLinePolicy, ReplacesOnlyTheGivenPartOfAPreset) {
  const Result whole = Local(kQwen, "whole", {"--policy", "evict50"});
  const Result changed = Local(kQwen, "changed", {"--policy", "evict50", "--keep-ratio", "0.25"});
  EXPECT_THAT(whole.file->Ints("kept_counts"), Each(256));
  EXPECT_THAT(changed.file->Ints("kept_counts"), Each(128));
  EXPECT_EQ(whole.said["resolved"]["scorer"], changed.said["resolved"]["scorer"]);
  const Result codec = Local(kQwen, "codec", {"--policy", "evict50", "--codec", "v=i8t"});
  EXPECT_EQ(codec.said["resolved"]["k_codec"], "raw16");
  EXPECT_EQ(codec.said["resolved"]["v_codec"], "i8t");
  EXPECT_EQ(codec.file->Ints("kept_indices"), whole.file->Ints("kept_indices"));
}

TEST_F(CommandLinePolicy, RefusesPartsWithoutAScorerOrABudget) {
  EXPECT_THAT(Refusal({"--keep-ratio", "0.5"}), HasSubstr("scorers got none"));
  EXPECT_THAT(Refusal({"--scorer", "keydiff"}), HasSubstr("budget got none"));
  EXPECT_EQ(FileCount(), 0);
}

TEST_F(CommandLinePolicy, KeepsEveryTokenWhereOnlyACodecIsGiven) {
  const Result result = Local(kQwen, "a", {"--codec", "k=i8t+rm,v=i8t"});
  EXPECT_THAT(result.file->Ints("kept_counts"), Each(512));
  EXPECT_TRUE(result.file->Has("packed"));
}

TEST_F(CommandLinePolicy, RoundsAKeepRatioDownButNotForTheFloatingPoint) {
  const SmallCache hundred(100);
  const std::string input = Write("hundred", hundred.File());
  // 0.29 x 100 is 28.999999999999996 in binary.
  for (const auto& [ratio, kept] : {std::pair("0.29", 29), std::pair("0.57", 57),
                                    std::pair("0.299", 29), std::pair("1", 100)}) {
    const Result result = Local(input, "out", {"--keep-ratio", ratio, "--scorer", "key_norm"});
    EXPECT_THAT(result.file->Ints("kept_counts"), Each(kept)) << ratio;
  }
}

TEST_F(CommandLinePolicy, SpendsAByteBudgetWithoutExceedingIt) {
  for (const char* codec : {"raw16", "i8t+rm", "k=i8t+rm,v=i8t", "k=lm4+rm,v=lm4",
                            "k=sfv3+rm,v=sfv2", "k=i4t+rm,v=fp8t"}) {
    const Result result =
        Local(kPride, "out",
              {"--budget-bytes", "512KiB", "--codec", codec, "--scorer", "keydiff:unrotate"});
    const int64_t after = result.said["bytes_after"].get<int64_t>();
    EXPECT_LE(after, 512 * 1024) << codec;
    // Up to one token per layer, or a block's padding, may be left over.
    EXPECT_GT(after, 512 * 1024 * 9 / 10) << codec;
  }
  const Result share =
      Local(kPride, "out",
            {"--budget-bytes", "10%", "--codec", "k=i8t+rm,v=lm4", "--scorer", "key_norm"});
  EXPECT_LE(10 * share.said["bytes_after"].get<int64_t>(),
            share.said["bytes_before"].get<int64_t>());
  EXPECT_THAT(Refusal({"--budget-bytes", "100", "--scorer", "key_norm"}),
              HasSubstr("FAILED_PRECONDITION/BUDGET_BELOW_PROTECTED"));
}

TEST_F(CommandLinePolicy, TakesTokenBudgetsAndProtection) {
  const Result result = Local(kQwen, "out",
                              {"--budget-tokens", "100", "--scorer", "key_norm", "--sink", "7",
                               "--recent", "20", "--recent-share", "0"});
  ASSERT_THAT(result.file->Ints("kept_counts"), Each(100));
  const std::vector<int32_t> kept = result.file->Ints("kept_indices");
  for (size_t row = 0; row < kept.size(); row += 100) {
    for (int i = 0; i < 7; ++i) EXPECT_EQ(kept[row + i], i);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(kept[row + 80 + i], 492 + i);
  }
  const Result none = Local(kQwen, "none", {"--budget-tokens", "0", "--scorer", "key_norm"});
  EXPECT_THAT(none.file->Ints("kept_counts"), Each(4));
  ASSERT_EQ(none.said["warnings"].size(), 1);
  EXPECT_THAT(none.said["warnings"][0].get<std::string>(), HasSubstr("sinks"));
  EXPECT_THAT(Refusal({"--budget-tokens", "0", "--scorer", "key_norm", "--on-conflict", "fail"}),
              HasSubstr("next:  "));
}

// z over the candidates, which are the tokens that have a score.
std::vector<double> Standardized(const std::vector<float>& scores, size_t begin, size_t tokens) {
  double sum = 0, squares = 0, count = 0;
  for (size_t i = begin; i < begin + tokens; ++i) {
    if (std::isnan(scores[i])) continue;
    sum += scores[i];
    count += 1;
  }
  const double mean = sum / count;
  for (size_t i = begin; i < begin + tokens; ++i) {
    if (!std::isnan(scores[i])) squares += (scores[i] - mean) * (scores[i] - mean);
  }
  std::vector<double> z;
  for (size_t i = begin; i < begin + tokens; ++i) {
    z.push_back((scores[i] - mean) / std::sqrt(squares / count));
  }
  return z;
}

TEST_F(CommandLinePolicy, BlendsRepeatedScorersOnOneScale) {
  const Words half = {"--keep-ratio", "0.5", "--with-scores"};
  const Words both = {"--scorer", "keydiff:unrotate", "--scorer", "key_norm"};
  const auto scores = [&](const std::string& name, const Words& how) {
    return Local(kQwen, name, half + how).file->Floats("scores");
  };
  const std::vector<float> a = scores("a", {"--scorer", "keydiff:unrotate"});
  const std::vector<float> b = scores("b", {"--scorer", "key_norm"});
  const std::vector<float> max = scores("max", both + Words{"--blend", "max"});
  const std::vector<float> sum = scores("sum", both + Words{"--blend", "sum"});
  EXPECT_TRUE(Read("max") != Read("sum"));
  ASSERT_EQ(max.size(), 8 * 2 * 512);
  double worst_max = 0, worst_sum = 0;
  for (size_t row = 0; row < max.size(); row += 512) {
    const std::vector<double> za = Standardized(a, row, 512), zb = Standardized(b, row, 512);
    for (size_t i = 0; i < 512; ++i) {
      ASSERT_EQ(std::isnan(za[i]), std::isnan(max[row + i]));
      if (std::isnan(za[i])) continue;
      worst_max = std::max(worst_max, std::abs(std::max(za[i], zb[i]) - max[row + i]));
      worst_sum = std::max(worst_sum, std::abs(za[i] + zb[i] - sum[row + i]));
    }
  }
  // f32 of numbers below 30, whose inputs were rounded to f32 too.
  EXPECT_LT(worst_max, 1e-4);
  EXPECT_LT(worst_sum, 1e-4);
}

TEST_F(CommandLinePolicy, SelectsADiverseSetOfTheSameSize) {
  const Words half = {"--keep-ratio", "0.25", "--scorer", "keydiff", "--selector"};
  const Result top = Local(kQwen, "top", half + Words{"topk"});
  const Result diverse = Local(kQwen, "diverse", half + Words{"diverse:lambda=0.7"});
  EXPECT_THAT(diverse.said["resolved"]["selector"].get<std::string>(), HasSubstr("lambda=0.7"));
  EXPECT_EQ(top.file->Ints("kept_counts"), diverse.file->Ints("kept_counts"));
  EXPECT_NE(top.file->Ints("kept_indices"), diverse.file->Ints("kept_indices"));
}

// Rotates `key` by `steps` positions; bands are (i, i + head_dim / 2).
std::vector<double> Rotated(const float* key, const std::vector<float>& inv_freq, int32_t steps) {
  const size_t bands = inv_freq.size();
  std::vector<double> turned(2 * bands);
  for (size_t band = 0; band < bands; ++band) {
    const double angle = steps * static_cast<double>(inv_freq[band]);
    const double re = key[band], im = key[band + bands];
    turned[band] = re * std::cos(angle) - im * std::sin(angle);
    turned[band + bands] = re * std::sin(angle) + im * std::cos(angle);
  }
  return turned;
}

TEST_F(CommandLinePolicy, RenumbersPositionsAndTurnsTheKeysWithThem) {
  const Result result = Local(kPride, "out", {"--policy", "evict50", "--positions", "renumber"});
  const TensorFile source(kPride);
  const std::vector<int32_t> positions = result.file->Ints("positions");
  const std::vector<int32_t> kept = result.file->Ints("kept_indices");
  const std::vector<float> before = source.Floats("k"), after = result.file->Floats("k");
  const std::vector<float> inv_freq = source.Floats("inv_freq");
  ASSERT_EQ(kept.size(), 8 * 3 * 512);
  ASSERT_EQ(positions.size(), kept.size());
  EXPECT_EQ(result.file->Contents().Metadata("logical_tokens"), "512");
  EXPECT_FALSE(result.file->Has("q_window"));  // turned by positions that are gone
  double worst = 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    const int32_t slot = static_cast<int32_t>(i % 512);
    ASSERT_EQ(positions[i], slot);
    const float* key = &before[(i / 512 * 1024 + kept[i]) * 64];
    const std::vector<double> want = Rotated(key, inv_freq, slot - kept[i]);
    double error = 0, power = 0;
    for (size_t d = 0; d < 64; ++d) {
      error += std::pow(want[d] - after[i * 64 + d], 2);
      power += want[d] * want[d];
    }
    worst = std::max(worst, std::sqrt(error / power));
  }
  EXPECT_LT(worst, 1.0 / 256);  // bf16 rounds to 2^-9, and the angle to far less
  // Its bytes are as good an input as any: positions start over.
  const Result again = Local(PathOf("out"), "again", {"--policy", "evict50"});
  EXPECT_THAT(again.file->Ints("kept_counts"), Each(256));
}

TEST_F(CommandLinePolicy, RefusesToRenumberUnequalRows) {
  EXPECT_THAT(Refusal({"--keep-ratio", "0.5", "--scorer", "keydiff", "--budgeter", "pyramid",
                       "--positions", "renumber"}),
              HasSubstr("FAILED_PRECONDITION/SHAPE_CLASS"));
}

}  // namespace
}  // namespace kvern
