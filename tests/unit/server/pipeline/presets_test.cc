#include "server/pipeline/presets.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "server/pipeline/resolve.h"

namespace kvern::pipeline {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint16_t kRope = kNeedsRope;
constexpr uint16_t kCalibrated = kNeedsRope | kNeedsCentres | kNeedsSensitivity | kNeedsMoments;

TEST(Presets, SmallAndTinyHaveARowWithAndOneWithoutSensitivity) {
  const struct {
    const char* preset;
    uint16_t inputs;
    double byte_share;
    const char* budgeter;
    const char* k;
    const char* v;
  } kRows[] = {{"small", kCalibrated, 0.125, "sensitivity", "lm4+rm", "sfv3"},
               {"small", kRope, 0.125, "uniform", "sfv3+rm", "sfv3"},
               {"tiny", kCalibrated, 0.0625, "sensitivity", "sfv3+rm", "sfv3"},
               {"tiny", kRope, 0.0625, "uniform", "sfv3+rm", "sfv2"}};
  for (const auto& row : kRows) {
    SCOPED_TRACE(row.preset);
    Policy asked;
    asked.preset = row.preset;
    const auto policy = Resolve(asked, {.source = Source::kInline, .inputs = row.inputs});
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_EQ(policy->byte_share, row.byte_share);
    EXPECT_EQ(ToText(policy->budgeter_spec), row.budgeter);
    EXPECT_EQ(ToText(policy->codecs.k), row.k);
    EXPECT_EQ(ToText(policy->codecs.v), row.v);
    EXPECT_EQ(policy->fallback.empty(), row.inputs == kCalibrated);
    EXPECT_THAT(policy->warnings, IsEmpty());
  }
  Policy no_rope;
  no_rope.preset = "tiny";
  EXPECT_EQ(ReasonOf(Resolve(no_rope, {.source = Source::kInline}).status()), "ROPE_UNKNOWN");
}

TEST(Presets, AreListedInTheWordsOfTheCommandLine) {
  const std::vector<PresetText> presets = Presets();
  ASSERT_EQ(presets.size(), 5u);
  EXPECT_EQ(presets[0].name, "balanced");
  EXPECT_THAT(presets[0].calibrated, HasSubstr("--budgeter sensitivity"));
  EXPECT_THAT(presets[0].calibrated, HasSubstr("--codec k=i8t+rm,v=lm4"));
  EXPECT_THAT(presets[0].uncalibrated, HasSubstr("--codec k=lm4+rm,v=lm4"));
  EXPECT_THAT(presets[1].calibrated, HasSubstr("--budget-bytes 12.5%"));
  EXPECT_THAT(presets[1].uncalibrated, HasSubstr("--codec k=sfv3+rm,v=sfv3"));
  EXPECT_THAT(presets[2].calibrated, HasSubstr("--budget-bytes 6.25%"));
  EXPECT_THAT(presets[4].calibrated, HasSubstr("--keep-ratio 0.5"));
}

}  // namespace
}  // namespace kvern::pipeline
