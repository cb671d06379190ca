// Runs every op of the cuda backend once, on a small cache that lies in memory as a real one does:
// 128 dims, bf16, shuffled blocks of 16 tokens, 4 query heads per KV head. sectors.py counts what
// the kernels fetch meanwhile; the answers are the business of tests/parity.
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "tests/support/device_kv.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

using support::DeviceKv;
using support::HostKv;

constexpr int64_t kKvHeads = 2;
constexpr int64_t kGroup = 4;
constexpr int64_t kQHeads = kKvHeads * kGroup;
constexpr int64_t kTokens = 512;  // two tiles
constexpr int64_t kKept = 384;
constexpr int64_t kPicked = 96;  // one by one, by diverse
constexpr int64_t kHeadDim = 128;
constexpr int64_t kBands = kHeadDim / 2;
constexpr int64_t kRank = 8;
constexpr int64_t kWindow = 16;

HostKv PagedKv(uint64_t seed, DType dtype = DType::kBF16) {
  return support::RandomKv({.dtype = dtype,
                            .kv_heads = kKvHeads,
                            .tokens = kTokens,
                            .head_dim = kHeadDim,
                            .order = support::BlockOrder::kShuffled},
                           seed);
}

class Ops {
 public:
  explicit Ops(Backend& backend)
      : backend_(backend),
        host_keys_(PagedKv(1)),
        host_values_(PagedKv(2)),
        keys_(backend, host_keys_),
        values_(backend, host_values_),
        scores_(DeviceScores()),
        accumulated_(DeviceScores()),
        all_(kTokens, 1),
        none_(kTokens, 0),
        rotation_(support::RotationOf(RopeLayout::kHalf, kBands, kTokens)),
        keep_(support::KeepEvery(keys_.refs(), 0, 1)) {
    chosen_ = OfCount(kKept);
  }

  absl::Status Score() {
    KVERN_RETURN_IF_ERROR(backend_.RowNorms(keys_.refs(), View(accumulated_)));
    KVERN_RETURN_IF_ERROR(TriAttention());
    KVERN_RETURN_IF_ERROR(ExpectedAttention());
    KVERN_RETURN_IF_ERROR(WindowAttention());
    KVERN_RETURN_IF_ERROR(AttentionMass());
    KVERN_RETURN_IF_ERROR(backend_.KeyDiff(
        {.keys = keys_.refs(), .unrotate = &rotation_, .alive = Mask(all_)}, View(scores_)));
    KVERN_RETURN_IF_ERROR(backend_.ZScore(Mask(all_), View(scores_)));
    KVERN_RETURN_IF_ERROR(backend_.Scale(-1.0f, View(scores_)));
    KVERN_RETURN_IF_ERROR(backend_.Blend(BlendKind::kMax, View(accumulated_), View(scores_)));
    KVERN_RETURN_IF_ERROR(backend_.ShareRows({{0, 1}}, GroupReduce::kMean, View(scores_)));
    int64_t nan_candidates = 0;
    const HideScoresArgs hide = {Mask(all_), View(scores_), &nan_candidates};
    return backend_.HideScores(std::span(&hide, 1));
  }

  absl::Status SelectAndMove() {
    KeepList picked = OfCount(kPicked);
    KVERN_RETURN_IF_ERROR(backend_.Diverse({.scores = View(scores_),
                                            .candidates = Mask(all_),
                                            .forced = Mask(none_),
                                            .values = values_.refs()},
                                           &picked));
    KVERN_RETURN_IF_ERROR(backend_.TopK(
        {.scores = View(scores_), .candidates = Mask(all_), .forced = Mask(none_)}, &chosen_));
    HostKv host_out = PagedKv(3);
    const DeviceKv out(backend_, host_out);
    GatherArgs args = {.in = keys_.refs(), .keep = &chosen_, .out = out.refs()};
    KVERN_RETURN_IF_ERROR(backend_.Gather(args));
    args.from = &rotation_;
    args.to = &rotation_;
    KVERN_RETURN_IF_ERROR(backend_.Gather(args));
    return backend_.Gather(
        {.in = out.refs(), .keep = &chosen_, .out = out.refs(), .in_place = true});
  }

  // In the registers of two threads, and by 16 threads in shared memory, which f32 takes.
  absl::Status CodeAll() {
    KVERN_RETURN_IF_ERROR(Code(keys_, values_));
    HostKv host = PagedKv(9, DType::kF32);
    const DeviceKv wide(backend_, host);
    return Code(wide, wide);
  }

 private:
  absl::Status Code(const DeviceKv& rows, const DeviceKv& decoded) {
    std::vector<Float16> mean(kKvHeads * kHeadDim);
    const MeanKeyArgs of_mean = {
        .keys = rows.refs(), .rotation = &rotation_, .counted = Mask(all_)};
    KVERN_RETURN_IF_ERROR(
        backend_.MeanKey(of_mean, DenseView(mean.data(), int64_t{1}, kKvHeads, kHeadDim)));
    for (const CodecSpec codec : {CodecSpec{CodecId::kRaw16, 0},
                                  {CodecId::kI8t, 0},
                                  {CodecId::kI8t, kFlagHadamard | kFlagRopeMean},
                                  {CodecId::kLm4, kFlagHadamard},
                                  {CodecId::kLm4, kFlagHadamard | kFlagRopeMean}}) {
      const support::PackedCase plan = support::PlanRows(rows.refs(), keep_, codec);
      KVERN_ASSIGN_OR_RETURN(const Buffer packed, backend_.Allocate(plan.bytes));
      KVERN_RETURN_IF_ERROR(backend_.Zero(packed.data(), plan.bytes));
      const std::span<std::byte> bytes(packed.data(), plan.bytes);
      const auto of_keys =
          DenseView(static_cast<const Float16*>(mean.data()), int64_t{1}, kKvHeads, kHeadDim);
      EncodeCounts counts;
      KVERN_RETURN_IF_ERROR(backend_.Encode({.rows = rows.refs(),
                                             .keep = &keep_,
                                             .table = plan.table,
                                             .mean_key = of_keys,
                                             .rotation = &rotation_,
                                             .packed = bytes},
                                            &counts));
      KVERN_RETURN_IF_ERROR(backend_.Decode({.packed = bytes,
                                             .table = plan.table,
                                             .mean_key = of_keys,
                                             .rotation = &rotation_,
                                             .rows = decoded.refs()}));
    }
    return absl::OkStatus();
  }

  absl::Status TriAttention() {
    const std::vector<float> u = support::RandomFloats(kQHeads * kHeadDim, 4);
    const std::vector<float> w = support::RandomFloats(kQHeads * kBands, 5);
    TriAttentionArgs args;
    args.keys = keys_.refs();
    args.bands = kBands;
    args.q_heads = kQHeads;
    args.u = DenseView(u.data(), int64_t{1}, kQHeads, int64_t{1}, kHeadDim);
    args.w = DenseView(w.data(), int64_t{1}, kQHeads, kBands);
    args.candidates = Mask(all_);
    return backend_.TriAttention(args, View(scores_));
  }

  absl::Status ExpectedAttention() {
    const std::vector<double> linear = support::RandomDoubles(kQHeads * kHeadDim, 6);
    const std::vector<double> factors = support::RandomDoubles(kQHeads * kRank * kHeadDim, 7);
    ExpectedAttentionArgs args;
    args.keys = keys_.refs();
    args.values = values_.refs();
    args.q_heads = kQHeads;
    args.rank = kRank;
    args.linear = DenseView(linear.data(), int64_t{1}, kQHeads, kHeadDim);
    args.factors = DenseView(factors.data(), int64_t{1}, kQHeads, kRank, kHeadDim);
    args.diagonal = args.linear;
    args.counted = Mask(all_);
    args.log = true;
    return backend_.ExpectedAttention(args, View(scores_));
  }

  absl::Status WindowAttention() {
    const std::vector<float> queries = support::RandomFloats(kQHeads * kWindow * kHeadDim, 8);
    WindowAttentionArgs args;
    args.keys = keys_.refs();
    args.queries = DenseView(queries.data(), int64_t{1}, kQHeads, kWindow, kHeadDim);
    return backend_.WindowAttention(args, View(scores_));
  }

  absl::Status AttentionMass() {
    const std::vector<float> mass(kKvHeads * kTokens, 1.0f);
    const std::vector<double> visible(kKvHeads * kTokens, 2.0);
    AttentionMassArgs args;
    args.mass = DenseView(mass.data(), int64_t{1}, kKvHeads, kTokens);
    args.visible = DenseView(visible.data(), int64_t{1}, kKvHeads, kTokens);
    args.values = values_.refs();
    args.value_norm = true;
    return backend_.AttentionMass(args, View(scores_));
  }

  static KeepList OfCount(int32_t count) {
    const std::vector<int32_t> counts(kKvHeads, count);
    return KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, kKvHeads));
  }
  Buffer DeviceScores() { return backend_.Allocate(kKvHeads * kTokens * 4).value(); }
  static ScoreView View(const Buffer& scores) {
    return DenseView(reinterpret_cast<float*>(scores.data()), int64_t{1}, kKvHeads, kTokens);
  }
  static MaskView Mask(const std::vector<uint8_t>& row) {
    return {row.data(), {1, kKvHeads, kTokens}, {0, 0, 1}};
  }

  Backend& backend_;
  HostKv host_keys_;
  HostKv host_values_;
  DeviceKv keys_;
  DeviceKv values_;
  Buffer scores_;
  Buffer accumulated_;
  std::vector<uint8_t> all_;
  std::vector<uint8_t> none_;
  RotationTable rotation_;
  KeepList keep_;    // every token
  KeepList chosen_;  // kKept of each row
};

absl::Status Run() {
  KVERN_ASSIGN_OR_RETURN(
      const std::unique_ptr<Backend> backend,
      MakeBackend({.name = "cuda", .scratch_bytes = int64_t{64} << 20, .hang_seconds = 300}));
  Ops ops(*backend);
  KVERN_RETURN_IF_ERROR(ops.Score());
  KVERN_RETURN_IF_ERROR(ops.SelectAndMove());
  KVERN_RETURN_IF_ERROR(ops.CodeAll());
  return backend->Finish();
}

}  // namespace
}  // namespace kvern

int main() {
  const absl::Status status = kvern::Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "gate_sectors: %s\n", std::string(status.message()).c_str());
  return 1;
}
