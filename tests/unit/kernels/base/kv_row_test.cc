// Rows survive the way to f32 and back at every dtype and stride.
#include "kernels/base/kv_row.h"

#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/host_kv.h"

namespace kvern {
namespace {

using support::HostKv;
using support::HostKvSpec;

TEST(StoreKvRow, UndoesLoadKvRow) {
  for (const HostKvSpec& spec : support::ParitySpecs()) {
    SCOPED_TRACE(support::Describe(spec));
    const HostKv from = support::RandomKv(spec, 91);
    HostKv to(spec, 91);
    std::vector<float> x(spec.head_dim);
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      for (int64_t head = 0; head < spec.kv_heads; ++head) {
        for (int64_t token = 0; token < from.Length(head); ++token) {
          const KvRef& source = from.refs()[layer];
          const KvRef& target = to.refs()[layer];
          LoadKvRow(source, source.Address(head, token), x.data());
          StoreKvRow(target, x.data(), target.Address(head, token));
          for (int64_t d = 0; d < spec.head_dim; ++d) {
            ASSERT_EQ(to.Get(layer, head, token, d), from.Get(layer, head, token, d));
          }
        }
      }
    }
  }
}

TEST(StoreKvRow, WritesOneNanForAll) {
  std::vector<float> x(8, -std::numeric_limits<float>::quiet_NaN());
  uint16_t row[8];
  StoreKvRow(DenseKvRef(DType::kBF16, row, 1, 1, 8), x.data(), reinterpret_cast<std::byte*>(row));
  EXPECT_EQ(row[0], 0x7FC0);
  StoreKvRow(DenseKvRef(DType::kF16, row, 1, 1, 8), x.data(), reinterpret_cast<std::byte*>(row));
  EXPECT_EQ(row[7], 0x7E00);
}

}  // namespace
}  // namespace kvern
