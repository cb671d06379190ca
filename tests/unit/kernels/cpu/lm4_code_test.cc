// The code found by a cubic and one comparison is the number of boundaries below the value.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/lm4_table.h"
#include "kernels/cpu/targets.h"
// After targets.h, which says what is built.
#include "kernels/cpu/register_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

std::vector<int32_t> CodesOf(const std::vector<float>& values) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  std::vector<int32_t> codes(values.size());
  for (size_t i = 0; i < values.size(); i += hn::Lanes(d)) {
    hn::StoreU(Lm4CodeByCubic(d, hn::LoadU(d, values.data() + i)), integers, codes.data() + i);
  }
  return codes;
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

namespace kvern::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

int32_t BoundariesBelow(float value) {
  int32_t count = 0;
  for (int i = 0; i < kLm4Boundaries; ++i) count += Lm4Boundary(i) < value ? 1 : 0;
  return count;
}

TEST(Lm4Code, CountsTheBoundariesBelowEveryValue) {
  std::vector<float> values = {0.0f, -0.0f, 1e-45f, -1e-45f, 1e30f, -1e30f, kInfinity, -kInfinity};
  for (int i = 0; i < kLm4Boundaries; ++i) {
    const float boundary = Lm4Boundary(i);
    for (const float value : {boundary, std::nextafter(boundary, kInfinity),
                              std::nextafter(boundary, -kInfinity), 2.0f * boundary}) {
      values.push_back(value);
    }
  }
  std::mt19937_64 random(71);
  std::uniform_real_distribution<float> wide(-12.0f, 12.0f), inner(-3.0f, 3.0f);
  for (int i = 0; i < 40000; ++i) values.push_back(i % 2 == 0 ? wide(random) : inner(random));
  for (float step = -3.0f; step <= 3.0f; step += 1.0f / 1024) values.push_back(step);
  values.resize((values.size() + 15) / 16 * 16);
  const std::vector<int32_t> codes = HWY_STATIC_DISPATCH(CodesOf)(values);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(codes[i], BoundariesBelow(values[i])) << values[i];
  }
}

}  // namespace
}  // namespace kvern::cpu
