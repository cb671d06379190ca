// Rows coded and restored by ref, and how far from the original they end.
#ifndef KVERN_TESTS_SUPPORT_CODED_KV_H_
#define KVERN_TESTS_SUPPORT_CODED_KV_H_

#include <vector>

#include "gtest/gtest.h"
#include "kernels/ref/decode.h"
#include "kernels/ref/encode.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern::support {

struct Coded {
  std::vector<std::byte> packed;
  std::vector<PackedRow> table;
  EncodeCounts counts;
};

// All tokens, by ref.
inline Coded EncodeAll(const HostKv& kv, CodecSpec codec) {
  const KeepList keep = KeepEvery(kv.refs(), 0, 1);
  PackedCase plan = PlanRows(kv.refs(), keep, codec);
  Coded coded;
  coded.packed.resize(plan.bytes);
  coded.table = plan.table;
  EncodeArgs args;
  args.rows = kv.refs();
  args.keep = &keep;
  args.table = coded.table;
  args.packed = coded.packed;
  EXPECT_TRUE(ref::Encode(/*stop=*/nullptr, args, &coded.counts).ok());
  return coded;
}

inline HostKv DecodeAll(const Coded& coded, const HostKvSpec& spec) {
  HostKv out(spec, 8);
  DecodeArgs args;
  args.packed = coded.packed;
  args.table = coded.table;
  args.rows = out.refs();
  EXPECT_TRUE(ref::Decode(/*stop=*/nullptr, args).ok());
  return out;
}

struct Fidelity {
  double nmse = 0;
  double slope = 0;  // <x, decoded> / <x, x>
};

// Head 0 of layer 0.
inline Fidelity Compare(const HostKv& kv, const HostKv& decoded) {
  double error = 0, norm = 0, product = 0;
  const HostKvSpec& spec = kv.spec();
  for (int64_t token = 0; token < spec.tokens; ++token) {
    for (int64_t d = 0; d < spec.head_dim; ++d) {
      const double x = kv.Get(0, 0, token, d);
      const double y = decoded.Get(0, 0, token, d);
      error += (x - y) * (x - y);
      norm += x * x;
      product += x * y;
    }
  }
  return {error / norm, product / norm};
}

// Of f32 rows.
inline HostKvSpec Gaussian(int64_t tokens, int64_t head_dim) {
  return {.dtype = DType::kF32, .tokens = tokens, .head_dim = head_dim, .block_tokens = 256};
}

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_CODED_KV_H_
