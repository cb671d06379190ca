// Rows and scores in memory of the backend, read and written in place: paged, strided, column-major
// and ragged within one cohort. Every backend leaves what ref leaves of each sequence alone. Rows
// in host memory do not show this: a device gets them as dense copies.
#include <algorithm>
#include <deque>
#include <limits>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/parity/parity.h"
#include "tests/support/device_kv.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

constexpr int32_t kGroup = 2;  // query heads per kv_head
constexpr int32_t kRank = 3;
constexpr int64_t kWindow = 5;

// One sequence with all that the arguments of an op may point to.
struct Sequence {
  Sequence(const HostKvSpec& spec, int64_t score_tokens, size_t number)
      : keys(RandomKv(spec, 80 + number)), values(RandomKv(spec, 90 + number)) {
    row_tokens = score_tokens;
    HostKvSpec mask_spec = spec;
    mask_spec.tokens = std::max(spec.tokens, row_tokens);
    mask = RandomMask(mask_spec, /*chance=*/0.9, number);
    mask_view = MaskOf(mask_spec, mask);
    if (number % 3 == 1) mask_view.stride[0] = mask_view.stride[1] = 0;  // one row for all heads
    const auto bands = static_cast<int32_t>(spec.head_dim / 2);
    const RopeLayout layout = number % 2 == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved;
    // All coordinates turned, or all but some, by vectors or not.
    rotation = RotationOf(layout, std::max(1, bands - static_cast<int32_t>(number % 3) * 4),
                          std::max<int64_t>(spec.tokens, 1));
    const int64_t q_heads = spec.kv_heads * kGroup;
    queries = RandomFloats(spec.layers * q_heads * kWindow * spec.head_dim, 100 + number);
    linear = RandomDoubles(spec.layers * q_heads * spec.head_dim, 110 + number);
    factors = RandomDoubles(spec.layers * q_heads * kRank * spec.head_dim, 120 + number);
    for (double& factor : factors) factor *= 0.1;
    diagonal = RandomDoubles(spec.layers * q_heads * spec.head_dim, 130 + number);
    if (spec.tokens < 20) return;
    keys.Set(0, 0, 7, 2, std::numeric_limits<float>::quiet_NaN());
    keys.Set(0, 1, 0, 5, std::numeric_limits<float>::infinity());
    values.Set(0, 1, 9, 1, std::numeric_limits<float>::infinity());
  }
  const HostKvSpec& spec() const { return keys.spec(); }

  HostKv keys;
  HostKv values;
  int64_t row_tokens = 0;  // of scores
  std::vector<uint8_t> mask;
  MaskView mask_view;
  RotationTable rotation;
  std::vector<float> queries;
  std::vector<double> linear, factors, diagonal;
};

// Lengths around a tile, score rows longer and shorter than what heads hold, and different layers
// and blocks. `kind` says the rest. Wide rows are short ones: a checked kernel is slow.
std::deque<Sequence> RaggedSequences(HostKvSpec kind) {
  struct Length {
    int32_t tokens;
    int32_t row_tokens;
  };
  std::deque<Sequence> sequences;
  for (const auto [tokens, row_tokens] :
       {Length{257, 257}, {1, 4}, {0, 3}, {40, 33}, {256, 262}, {4, 4}}) {
    if (kind.head_dim > 64 && tokens > 64) continue;
    kind.tokens = tokens;
    kind.layers = 1 + static_cast<int64_t>(sequences.size() % 2);
    kind.block_tokens = sequences.size() % 2 == 0 ? 16 : 7;
    kind.order = BlockOrder::kShuffled;
    kind.lengths.clear();
    if (tokens > 30) kind.lengths = {tokens, tokens - 30};
    sequences.emplace_back(kind, row_tokens, sequences.size());
  }
  return sequences;
}

// Every dtype by vectors and by elements, less than a step of 16 and more than a block of threads.
std::vector<HostKvSpec> Kinds() {
  using enum TileLayout;
  std::vector<HostKvSpec> kinds;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const TileLayout layout : {kHeadMajor, kTokenMajor, kColumns}) {
      kinds.push_back({.dtype = dtype, .kv_heads = 2, .head_dim = 24, .layout = layout});
    }
  }
  kinds.push_back({.kv_heads = 2, .head_dim = 8, .layout = kTokenMajor});
  kinds.push_back({.kv_heads = 2, .head_dim = 128, .layout = kHeadMajor});
  kinds.push_back({.dtype = DType::kF16, .kv_heads = 2, .head_dim = 264, .layout = kColumns});
  return kinds;
}

// Keys and values of a cohort in memory of one backend.
struct Placed {
  Placed(Backend& backend, std::deque<Sequence>& sequences) {
    for (Sequence& sequence : sequences) {
      keys.emplace_back(backend, sequence.keys);
      values.emplace_back(backend, sequence.values);
    }
  }
  std::deque<DeviceKv> keys, values;
};

// `args` lack rows and scores.
template <class Args>
void ExpectInPlaceParity(std::deque<Sequence>& sequences, std::vector<Args> args,
                         absl::Status (Backend::*score)(std::span<const Args>)) {
  std::vector<std::vector<std::byte>> want;
  ForEachBackend([&](Backend& backend) {
    const Placed placed(backend, sequences);
    std::deque<DeviceScores> scores;
    for (size_t i = 0; i < args.size(); ++i) {
      const HostKvSpec& spec = sequences[i].spec();
      scores.emplace_back(backend, spec.layers, spec.kv_heads, sequences[i].row_tokens);
      if constexpr (requires { args[i].scores; }) args[i].scores = scores.back().view();
      if constexpr (requires { args[i].norms; }) args[i].norms = scores.back().view();
      if constexpr (requires { args[i].rows; }) args[i].rows = placed.keys[i].refs();
      if constexpr (requires { args[i].keys; }) args[i].keys = placed.keys[i].refs();
      if constexpr (requires { args[i].values; }) args[i].values = placed.values[i].refs();
    }
    const bool alone = want.empty();  // ref
    if (alone) {
      for (const Args& one : args) ASSERT_TRUE((backend.*score)(std::span(&one, 1)).ok());
    } else {
      ASSERT_TRUE((backend.*score)(args).ok());
    }
    for (size_t i = 0; i < args.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("sequence ", i, " ", Describe(sequences[i].spec())));
      const absl::StatusOr<std::vector<std::byte>> read = scores[i].Read(backend);
      ASSERT_TRUE(read.ok()) << read.status().ToString();
      const std::vector<std::byte>& got = *read;
      if (alone) want.push_back(got);
      const auto [difference, unused] = std::mismatch(want[i].begin(), want[i].end(), got.begin());
      EXPECT_TRUE(difference == want[i].end())
          << "byte " << difference - want[i].begin() << " of " << got.size() << " differs from ref";
    }
  });
}

TEST(RowsInPlaceParity, KeyDiff) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    std::vector<KeyDiffArgs> args;
    for (const Sequence& sequence : sequences) {
      const bool turned = args.size() % 4 != 3;
      args.push_back({.keys = {},
                      .unrotate = turned ? &sequence.rotation : nullptr,
                      .alive = sequence.mask_view});
    }
    ExpectInPlaceParity(sequences, args, &Backend::KeyDiff);
  }
}

ExpectedAttentionArgs MomentsOf(const Sequence& sequence, int64_t rank) {
  const HostKvSpec& spec = sequence.spec();
  const int64_t q_heads = spec.kv_heads * kGroup;
  ExpectedAttentionArgs args;
  args.q_heads = static_cast<int32_t>(q_heads);
  args.rank = static_cast<int32_t>(rank);
  args.linear = DenseView(sequence.linear.data(), spec.layers, q_heads, spec.head_dim);
  args.factors = DenseView(sequence.factors.data(), spec.layers, q_heads, rank, spec.head_dim);
  args.diagonal = DenseView(sequence.diagonal.data(), spec.layers, q_heads, spec.head_dim);
  args.counted = sequence.mask_view;
  return args;
}

TEST(RowsInPlaceParity, ExpectedAttention) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    for (const bool log : {false, true}) {
      std::vector<ExpectedAttentionArgs> args;
      for (const Sequence& sequence : sequences) {
        args.push_back(MomentsOf(sequence, kRank));
        args.back().log = log;
      }
      ExpectInPlaceParity(sequences, args, &Backend::ExpectedAttention);
    }
  }
}

// A whole covariance of 72 x 72 doubles is more than a block of threads holds.
TEST(RowsInPlaceParity, ExpectedAttentionOfAWholeCovariance) {
  constexpr int64_t kDims = 72;
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const TileLayout layout : {TileLayout::kTokenMajor, TileLayout::kColumns}) {
      const HostKvSpec kind = {.dtype = dtype, .kv_heads = 2, .head_dim = kDims, .layout = layout};
      SCOPED_TRACE(Describe(kind));
      std::deque<Sequence> sequences = RaggedSequences(kind);
      std::vector<ExpectedAttentionArgs> args;
      for (Sequence& sequence : sequences) {
        sequence.factors = RandomDoubles(
            sequence.spec().layers * kind.kv_heads * kGroup * kDims * kDims, /*seed=*/140);
        for (double& factor : sequence.factors) factor *= 0.01;
        args.push_back(MomentsOf(sequence, kDims));
        args.back().full = true;
        args.back().diagonal = {};
      }
      ExpectInPlaceParity(sequences, args, &Backend::ExpectedAttention);
    }
  }
}

TEST(RowsInPlaceParity, WindowAttention) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    for (const PoolKind pool : {PoolKind::kAverage, PoolKind::kMax}) {
      std::vector<WindowAttentionArgs> args;
      for (const Sequence& sequence : sequences) {
        args.push_back({.keys = {},
                        .queries = DenseView(sequence.queries.data(), sequence.spec().layers,
                                             kind.kv_heads * kGroup, kWindow, kind.head_dim),
                        .pool = pool});
      }
      ExpectInPlaceParity(sequences, args, &Backend::WindowAttention);
    }
  }
}

TEST(RowsInPlaceParity, RowNorms) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    ExpectInPlaceParity(sequences, std::vector<RowNormsArgs>(sequences.size()), &Backend::RowNorms);
  }
}

TEST(RowsInPlaceParity, AttentionMass) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    std::deque<std::vector<float>> masses;
    std::deque<std::vector<double>> visible;
    std::vector<AttentionMassArgs> args;
    for (const Sequence& sequence : sequences) {
      const int64_t layers = sequence.spec().layers, tokens = sequence.row_tokens;
      masses.push_back(RandomFloats(layers * kind.kv_heads * tokens, /*seed=*/150));
      visible.emplace_back(masses.back().size(), 3.0);
      const std::vector<float>& mass = masses.back();
      args.push_back({.mass = DenseView(mass.data(), layers, kind.kv_heads, tokens),
                      .visible = DenseView(static_cast<const double*>(visible.back().data()),
                                           layers, kind.kv_heads, tokens),
                      .values = {},
                      .value_norm = true});
    }
    ExpectInPlaceParity(sequences, args, &Backend::AttentionMass);
  }
}

TEST(RowsInPlaceParity, TriAttention) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    const int64_t q_heads = kind.kv_heads * kGroup;
    for (const int64_t bands : {kind.head_dim / 2, kind.head_dim / 2 - 1}) {
      for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
        std::vector<TriAttentionArgs> args;
        for (const Sequence& sequence : sequences) {
          const int64_t layers = sequence.spec().layers;
          const float* vectors = sequence.queries.data();
          args.push_back(
              {.keys = {},
               .layout = layout,
               .bands = static_cast<int32_t>(bands),
               .q_heads = static_cast<int32_t>(q_heads),
               .columns = 1,
               .u = DenseView(vectors, layers, q_heads, int64_t{1}, 2 * bands),
               .w = DenseView(vectors + layers * q_heads * kind.head_dim, layers, q_heads, bands),
               .candidates = sequence.mask_view});
        }
        ExpectInPlaceParity(sequences, args, &Backend::TriAttention);
      }
    }
  }
}

TEST(RowsInPlaceParity, MeanKey) {
  for (const HostKvSpec& kind : Kinds()) {
    SCOPED_TRACE(Describe(kind));
    std::deque<Sequence> sequences = RaggedSequences(kind);
    std::vector<std::vector<Float16>> want;
    ForEachBackend([&](Backend& backend) {
      const Placed placed(backend, sequences);
      std::vector<std::vector<Float16>> got;
      std::vector<MeanKeyArgs> args;
      got.reserve(sequences.size());
      for (const Sequence& sequence : sequences) {
        const HostKvSpec& spec = sequence.spec();
        got.emplace_back(spec.layers * spec.kv_heads * spec.head_dim);
        args.push_back(
            {.keys = placed.keys[args.size()].refs(),
             .rotation = args.size() % 4 != 3 ? &sequence.rotation : nullptr,
             .counted = sequence.mask_view,
             .mean = DenseView(got.back().data(), spec.layers, spec.kv_heads, spec.head_dim)});
      }
      if (want.empty()) {
        for (const MeanKeyArgs& one : args) {
          ASSERT_TRUE(backend.MeanKey(std::span(&one, 1)).ok());
        }
        want = got;
      } else {
        ASSERT_TRUE(backend.MeanKey(args).ok());
      }
      for (size_t i = 0; i < got.size(); ++i) {
        const auto same = [](Float16 a, Float16 b) { return a.bits == b.bits; };
        EXPECT_TRUE(std::equal(got[i].begin(), got[i].end(), want[i].begin(), same)) << i;
      }
    });
  }
}

}  // namespace
}  // namespace kvern::support
