// Keys and values of several ragged sequences, coded and restored in one call with codecs mixed row
// by row, are what ref makes of each alone.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

using support::HostKv;
using support::HostKvSpec;

constexpr CodecSpec kCodecs[] = {
    {CodecId::kLm4, kFlagHadamard | kFlagRopeMean},
    {CodecId::kI8t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kLm4, kFlagHadamard},
    {CodecId::kRaw16, 0},
    {CodecId::kI8t, kFlagRopeMean},
    {CodecId::kI8t, 0},
    {CodecId::kSfv3, kFlagHadamard | kFlagRopeMean},
    {CodecId::kSfv2, kFlagHadamard},
    {CodecId::kKch4, 0},
    {CodecId::kI4t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kI4t, 0},
    {CodecId::kFp8t, 0},
};

// Rows of at most 64 slots; each has the next codec.
support::PackedCase PlanMixed(LayerRefs rows, const KeepList& keep, size_t first_codec) {
  support::PackedCase packed = support::PlanRows(rows, keep, {});
  packed.bytes = 0;
  for (PackedRow& row : packed.table) {
    const CodecSpec codec = CodecOfBlock(kCodecs[first_codec++ % std::size(kCodecs)], row.tokens);
    row.codec = static_cast<int64_t>(codec.id);
    row.flags = codec.flags;
    row.byte_offset = packed.bytes;
    const KvRef& ref = rows[row.layer];
    packed.bytes +=
        AlignUp(BlockBytes(codec.id, ref.dtype, row.tokens, ref.head_dim), kPackedBlockAlign);
  }
  return packed;
}

// Rows of zeros, of numbers whose squares f32 cannot hold, of ties between codes, beyond f16.
void Spoil(HostKv& kv) {
  const HostKvSpec& spec = kv.spec();
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    for (int64_t token = 2; token < spec.tokens; token += 3) {
      const float factors[] = {0.0f, 1e-22f, 3e-23f, 1e-20f, 7e4f, 1e30f};
      const float factor = factors[token / 3 % std::size(factors)];
      for (int64_t d = 0; d < spec.head_dim; ++d) {
        kv.Set(layer, 0, token, d, factor * kv.Get(layer, 0, token, d));
        // Every other time the f32 sum of squares is that of one coordinate: the codes are of
        // values far longer than it says.
        const float tiny = std::copysign(d == 7 ? 3.1e-23f : 2.6e-23f, kv.Get(layer, 1, token, d));
        kv.Set(layer, 1, token, d, token % 2 == 0 ? tiny : d % 5 == 0 ? factor : 0.0f);
      }
    }
  }
}

// One role of one sequence with all that its arguments point to.
struct Sequence {
  Sequence(const HostKvSpec& spec, size_t number)
      : rows(support::RandomKv(spec, 70 + number)),
        keep(support::KeepEvery(rows.refs(), 0, number % 2 + 1)),
        plan(PlanMixed(rows.refs(), keep, number)),
        rotation(support::RotationOf(RopeLayout::kHalf, static_cast<int32_t>(spec.head_dim / 2),
                                     std::max<int64_t>(spec.tokens, 1))) {
    Spoil(rows);
    for (const float x : support::RandomFloats(spec.layers * spec.kv_heads * spec.head_dim, 69)) {
      mean.push_back(FromFloat<Float16>(x));
    }
  }
  TensorView<const Float16, 3> Mean() const {
    const HostKvSpec& spec = rows.spec();
    return DenseView(mean.data(), spec.layers, spec.kv_heads, spec.head_dim);
  }

  HostKv rows;
  KeepList keep;
  support::PackedCase plan;
  RotationTable rotation;
  std::vector<Float16> mean;
};

struct Result {
  std::vector<std::vector<std::byte>> packed;
  std::vector<EncodeCounts> counts;
  std::vector<std::vector<std::byte>> decoded;
};

Result Code(Backend& backend, const std::deque<Sequence>& sequences, bool together) {
  Result result;
  result.counts.resize(sequences.size());
  std::vector<EncodeArgs> encode;
  std::vector<DecodeArgs> decode;
  std::deque<HostKv> restored;
  for (const Sequence& sequence : sequences) result.packed.emplace_back(sequence.plan.bytes);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& sequence = sequences[i];
    restored.emplace_back(sequence.rows.spec(), 5);
    encode.push_back({.rows = sequence.rows.refs(),
                      .keep = &sequence.keep,
                      .table = sequence.plan.table,
                      .mean_key = sequence.Mean(),
                      .rotation = &sequence.rotation,
                      .packed = result.packed[i],
                      .counts = &result.counts[i]});
    decode.push_back({.packed = result.packed[i],
                      .table = sequence.plan.table,
                      .mean_key = sequence.Mean(),
                      .rotation = &sequence.rotation,
                      .rows = restored.back().refs()});
  }
  if (together) {
    EXPECT_TRUE(backend.Encode(encode).ok());
    EXPECT_TRUE(backend.Decode(decode).ok());
  } else {
    for (const EncodeArgs& args : encode) {
      EXPECT_TRUE(backend.Encode(std::span(&args, 1)).ok());
    }
    for (const DecodeArgs& args : decode) EXPECT_TRUE(backend.Decode(args).ok());
  }
  for (HostKv& kv : restored) result.decoded.emplace_back(kv.memory().begin(), kv.memory().end());
  return result;
}

TEST(CodingCohortParity, SequencesTogetherAreEachOfThemAlone) {
  std::vector<HostKvSpec> kinds;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t head_dim : {64, 128}) {
      kinds.push_back({.dtype = dtype, .head_dim = head_dim});
    }
  }
  kinds.push_back({.dtype = DType::kF32, .head_dim = 128});
  kinds.push_back({.head_dim = 128, .layout = support::TileLayout::kColumns});
  kinds.push_back({.dtype = DType::kF16, .head_dim = 256});
  for (HostKvSpec spec : kinds) {
    SCOPED_TRACE(support::Describe(spec));
    spec.kv_heads = 2;
    spec.order = support::BlockOrder::kShuffled;
    std::deque<Sequence> sequences;
    for (const int64_t tokens : {130, 1, 0, 65, 130, 127, 200}) {
      spec.tokens = tokens;
      spec.layers = 1 + static_cast<int64_t>(sequences.size() % 2);
      sequences.emplace_back(spec, sequences.size());
    }
    Result want;
    bool have_ref = false;
    support::ForEachBackend([&](Backend& backend) {
      const Result got = Code(backend, sequences, have_ref);
      if (!have_ref) want = got;
      have_ref = true;
      for (size_t i = 0; i < sequences.size(); ++i) {
        SCOPED_TRACE(absl::StrCat("sequence ", i));
        EXPECT_TRUE(got.packed[i] == want.packed[i]);
        EXPECT_TRUE(got.decoded[i] == want.decoded[i]);
        EXPECT_EQ(got.counts[i].nonfinite, want.counts[i].nonfinite);
        EXPECT_EQ(got.counts[i].squared_error, want.counts[i].squared_error);
        EXPECT_EQ(got.counts[i].squared_norm, want.counts[i].squared_norm);
      }
    });
  }
}

}  // namespace
}  // namespace kvern
