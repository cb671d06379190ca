// Every op of the cpu backend on one layer, as a multiple of reading its keys once.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/base/packed_layout.h"
#include "tests/bench/layer.h"
#include "tests/bench/measure.h"
#include "tests/support/packed_case.h"

namespace kvern::bench {
namespace {

using OpRun = std::function<absl::Status(Backend&)>;
// Makes its inputs when the benchmark runs, not when it is listed.
using MakeOp = std::function<OpRun()>;

void Register(const std::string& name, const Work& work, const MakeOp& make) {
  for (const int threads : {1, 2}) {
    const auto run = std::make_shared<OpRun>();
    benchmark::RegisterBenchmark(absl::StrCat("op/", name, "/threads:", threads).c_str(),
                                 [work, make, threads, run](benchmark::State& state) {
                                   if (*run == nullptr) *run = make();
                                   MeasureRound(state, ReadOf(threads), work,
                                                [&] { return (*run)(BackendOf(threads)); });
                                 })
        ->Iterations(1)
        ->Repetitions(kRounds)
        ->UseManualTime();
  }
}

// One output for all ops that score.
ScoreView Out() {
  static auto& scores = *new std::vector<float>(kKvHeads * kTokens);
  return DenseView(scores.data(), int64_t{1}, kKvHeads, kTokens);
}
ConstScoreView Scores() {
  return DenseView(static_cast<const float*>(TheLayer().scores.data()), int64_t{1}, kKvHeads,
                   kTokens);
}

template <class T>
using Shared = std::shared_ptr<const std::vector<T>>;
Shared<float> Floats(int64_t count) {
  return std::make_shared<const std::vector<float>>(support::RandomFloats(count, /*seed=*/5));
}
Shared<double> Doubles(int64_t count) {
  return std::make_shared<const std::vector<double>>(support::RandomDoubles(count, /*seed=*/6));
}

OpRun TriAttention(int32_t q_heads) {
  const Shared<float> u = Floats(q_heads * kHeadDim), w = Floats(q_heads * kBands);
  return [=](Backend& backend) {
    TriAttentionArgs args;
    args.keys = TheLayer().keys.refs();
    args.bands = kBands;
    args.q_heads = q_heads;
    args.u = DenseView(u->data(), 1, q_heads, 1, kHeadDim);
    args.w = DenseView(w->data(), 1, q_heads, kBands);
    args.candidates = TheLayer().All();
    return backend.TriAttention(args, Out());
  };
}

OpRun ExpectedAttention(int32_t q_heads) {
  constexpr int32_t kRank = 8;
  const Shared<double> linear = Doubles(q_heads * kHeadDim), diagonal = linear;
  const Shared<double> factors = Doubles(q_heads * kRank * kHeadDim);
  return [=](Backend& backend) {
    ExpectedAttentionArgs args;
    args.keys = TheLayer().keys.refs();
    args.values = TheLayer().values.refs();
    args.q_heads = q_heads;
    args.rank = kRank;
    args.linear = DenseView(linear->data(), 1, q_heads, kHeadDim);
    args.factors = DenseView(factors->data(), 1, q_heads, kRank, kHeadDim);
    args.diagonal = DenseView(diagonal->data(), 1, q_heads, kHeadDim);
    args.counted = TheLayer().All();
    args.log = true;
    return backend.ExpectedAttention(args, Out());
  };
}

OpRun WindowAttention(int32_t q_heads) {
  constexpr int32_t kWindow = 32;
  const Shared<float> queries = Floats(q_heads * kWindow * kHeadDim);
  return [=](Backend& backend) {
    WindowAttentionArgs args;
    args.keys = TheLayer().keys.refs();
    args.queries = DenseView(queries->data(), 1, q_heads, kWindow, kHeadDim);
    return backend.WindowAttention(args, Out());
  };
}

void RegisterScorers() {
  const Work keys_once = {kTokens, kKeyBytes + kScoreBytes};
  const Work with_angles = {kTokens, kKeyBytes + kAngleBytes + kScoreBytes};
  Register("key_norm", keys_once, [] {
    return [](Backend& backend) { return backend.RowNorms(TheLayer().keys.refs(), Out()); };
  });
  Register("keydiff unrotate", with_angles, [] {
    return [](Backend& backend) {
      return backend.KeyDiff({TheLayer().keys.refs(), &TheLayer().rotation, TheLayer().All()},
                             Out());
    };
  });
  for (const int32_t group : {1, 4}) {
    const auto q_heads = static_cast<int32_t>(group * kKvHeads);
    const std::string suffix = absl::StrCat(" G=", group);
    Register("triattention mean" + suffix, keys_once, [=] { return TriAttention(q_heads); });
    Register("expected_attention rank=8 log" + suffix, {kTokens, 2 * kKeyBytes + kScoreBytes},
             [=] { return ExpectedAttention(q_heads); });
    Register("snapkv window=32" + suffix, keys_once, [=] { return WindowAttention(q_heads); });
  }
}

KeepList EqualCounts(int32_t count) {
  const std::vector<int32_t> counts(kKvHeads, count);
  return KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, kKvHeads));
}

void RegisterSelectors() {
  const int64_t mask_bytes = 2 * kTokens;
  Register("topk 2048 of 32768", {kTokens, kScoreBytes + mask_bytes + kKvHeads * 2048 * 4}, [] {
    return [keep = std::make_shared<KeepList>(EqualCounts(2048))](Backend& backend) {
      TopKArgs args;
      args.scores = Scores();
      args.candidates = TheLayer().All();
      args.forced = TheLayer().None();
      return backend.TopK(args, keep.get());
    };
  });
  Register("diverse 128 of 32768", {kTokens, kScoreBytes + mask_bytes + kKvHeads * 128 * 256}, [] {
    return [keep = std::make_shared<KeepList>(EqualCounts(128))](Backend& backend) {
      DiverseArgs args;
      args.scores = Scores();
      args.candidates = TheLayer().All();
      args.forced = TheLayer().None();
      args.values = TheLayer().values.refs();
      return backend.Diverse(args, keep.get());
    };
  });
}

// All 32768 tokens of one role under one codec.
struct Coded {
  KeepList keep = support::KeepEvery(TheLayer().keys.refs(), 0, 1);
  support::PackedCase packed;
  std::vector<std::byte> bytes;
  std::vector<Float16> mean = std::vector<Float16>(kKvHeads * kHeadDim, Float16{0x2E66});  // 0.1
  support::HostKv out = PagedKv(kTokens);

  explicit Coded(CodecSpec codec)
      : packed(support::PlanRows(TheLayer().keys.refs(), keep, codec)), bytes(packed.bytes) {}
  TensorView<const Float16, 3> Mean() const {
    return DenseView(mean.data(), int64_t{1}, kKvHeads, kHeadDim);
  }
  absl::Status Encode(Backend& backend, LayerRefs rows) {
    EncodeCounts counts;
    return backend.Encode({rows, &keep, packed.table, Mean(), &TheLayer().rotation, bytes},
                          &counts);
  }
  absl::Status Decode(Backend& backend) {
    return backend.Decode({bytes, packed.table, Mean(), &TheLayer().rotation, out.refs()});
  }
};

void RegisterCodec(const std::string& name, CodecSpec codec, Role role) {
  const int64_t rows = kKvHeads * kTokens;
  const Work work = {kTokens, kKeyBytes +
                                  rows * (CodeRowBytes(codec.id, DType::kBF16, kHeadDim) +
                                          static_cast<int64_t>(sizeof(Float16))) +
                                  ((codec.flags & kFlagRopeMean) != 0 ? kAngleBytes : 0)};
  const auto source = [role] {
    return role == Role::kKey ? TheLayer().keys.refs() : TheLayer().values.refs();
  };
  Register("encode " + name, work, [=] {
    return [=, coded = std::make_shared<Coded>(codec)](Backend& backend) {
      return coded->Encode(backend, source());
    };
  });
  Register("decode " + name, work, [=] {
    const auto coded = std::make_shared<Coded>(codec);
    const absl::Status encoded = coded->Encode(BackendOf(1), source());
    return [=](Backend& backend) { return encoded.ok() ? coded->Decode(backend) : encoded; };
  });
}

void RegisterGather(int64_t step) {
  const int64_t kept = kTokens / step;
  Register(absl::StrCat("gather K ", kept, " of 32768"), {kept, 2 * kKeyBytes / step}, [=] {
    const auto keep =
        std::make_shared<KeepList>(support::KeepEvery(TheLayer().keys.refs(), step - 1, step));
    const auto out = std::make_shared<support::HostKv>(PagedKv(kept));
    return [=](Backend& backend) {
      GatherArgs args;
      args.in = TheLayer().keys.refs();
      args.keep = keep.get();
      args.out = out->refs();
      return backend.Gather(args);
    };
  });
}

}  // namespace

void RegisterOpBenchmarks() {
  RegisterScorers();
  RegisterSelectors();
  Register("mean_key", {kTokens, kKeyBytes + kAngleBytes}, [] {
    return [mean = std::make_shared<std::vector<Float16>>(kKvHeads * kHeadDim)](Backend& backend) {
      return backend.MeanKey({TheLayer().keys.refs(), &TheLayer().rotation, TheLayer().All()},
                             DenseView(mean->data(), int64_t{1}, kKvHeads, kHeadDim));
    };
  });
  RegisterCodec("K i8t+rm", {CodecId::kI8t, kFlagRopeMean}, Role::kKey);
  RegisterCodec("K lm4+rm", {CodecId::kLm4, kFlagHadamard | kFlagRopeMean}, Role::kKey);
  RegisterCodec("V lm4", {CodecId::kLm4, kFlagHadamard}, Role::kValue);
  RegisterGather(/*step=*/16);
  RegisterGather(/*step=*/2);
}

}  // namespace kvern::bench
