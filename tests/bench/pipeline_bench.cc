// Whole policies on the same layer: plans (scores and selection), packing, moving and unpacking.
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/resolve.h"
#include "tests/bench/layer.h"
#include "tests/bench/measure.h"

namespace kvern::bench {
namespace {

using pipeline::KeepPlan;
using pipeline::PackedKv;
using pipeline::ResolvedPolicy;
using pipeline::SequenceInput;

// Moments of queries near a random mean: any positive semidefinite covariance costs the same.
std::shared_ptr<const pipeline::QueryMoments> SomeMoments() {
  auto moments = std::make_shared<pipeline::QueryMoments>();
  moments->num_layers = 1;
  moments->q_heads = kQHeads;
  moments->head_dim = kHeadDim;
  moments->mean = support::RandomFloats(kQHeads * kHeadDim, /*seed=*/8);
  moments->cov.resize(kQHeads * kHeadDim * kHeadDim);
  for (int64_t head = 0; head < kQHeads; ++head) {
    const std::vector<float> a = support::RandomFloats(kHeadDim, 9 + head);
    for (int64_t i = 0; i < kHeadDim; ++i) {
      for (int64_t j = 0; j < kHeadDim; ++j) {
        moments->cov[(head * kHeadDim + i) * kHeadDim + j] = a[i] * a[j] + (i == j ? 1.0f : 0.0f);
      }
    }
  }
  return moments;
}

struct Sequence {
  pipeline::ModelSpec model;
  pipeline::Calibrations calibrations;
  pipeline::SideTensors side;
  SequenceInput input;

  Sequence() {
    model.num_layers = 1;
    model.q_heads = kQHeads;
    model.kv_heads = kKvHeads;
    model.head_dim = kHeadDim;
    for (int32_t band = 0; band < kBands; ++band) {
      model.rope.inv_freq.push_back(static_cast<float>(std::pow(1e4, -double{1} * band / kBands)));
    }
    calibrations.moments = SomeMoments();
    calibrations.cache_key = "bench";  // named calibrations keep their basis between calls
    input.model = &model;
    input.calibrations = &calibrations;
    input.side = &side;
    input.layer_indices = {0};
    const LayerRefs keys = TheLayer().keys.refs(), values = TheLayer().values.refs();
    input.keys.assign(keys.begin(), keys.end());
    input.values.assign(values.begin(), values.end());
    for (int32_t token = 0; token < kTokens; ++token) input.positions.push_back(token);
    input.logical_tokens = kTokens;
  }
};
Sequence& TheSequence() {
  static auto& sequence = *new Sequence;
  return sequence;
}

ResolvedPolicy Preset(const std::string& name) {
  pipeline::Policy policy;
  policy.preset = name;
  pipeline::Availability available;
  available.inputs = pipeline::kNeedsMoments | pipeline::kNeedsRope | pipeline::kNeedsValues;
  return pipeline::Resolve(policy, available).value();
}

// Bytes that a plan of the default blend reads and writes at least.
constexpr int64_t kPlanBytes = 2 * kKeyBytes + kAngleBytes + kScoreBytes;

void Register(const std::string& name, const Work& work,
              const std::function<std::function<absl::Status(Backend&)>()>& make) {
  for (const int threads : {1, 2}) {
    const auto run = std::make_shared<std::function<absl::Status(Backend&)>>();
    benchmark::RegisterBenchmark(absl::StrCat("pipeline/", name, "/threads:", threads).c_str(),
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

absl::Status Pack(Backend& backend, const ResolvedPolicy& policy, PackedKv* packed) {
  KVERN_ASSIGN_OR_RETURN(const KeepPlan plan, PlanKeep(backend, TheSequence().input, policy));
  KVERN_ASSIGN_OR_RETURN(*packed, pipeline::Pack(backend, TheSequence().input, policy, plan, {}));
  return absl::OkStatus();
}

// What `balanced` packed, and where it goes back to.
struct Packed {
  KeepPlan plan;
  PackedKv packed;
  support::HostKv keys = PagedKv(kTokens);
  support::HostKv values = PagedKv(kTokens);

  Packed() {
    const ResolvedPolicy policy = Preset("balanced");
    plan = PlanKeep(BackendOf(1), TheSequence().input, policy).value();
    packed = pipeline::Pack(BackendOf(1), TheSequence().input, policy, plan, {}).value();
  }
  absl::Status Unpack(Backend& backend) {
    const LayerRefs k = keys.refs(), v = values.refs();
    return pipeline::Unpack(backend, TheSequence().model, packed, plan.kept_positions,
                            {{k.begin(), k.end()}, {v.begin(), v.end()}});
  }
};

// Half of the tokens into fresh blocks.
absl::Status Evict(Backend& backend, const ResolvedPolicy& policy, support::HostKv& keys,
                   support::HostKv& values) {
  KVERN_ASSIGN_OR_RETURN(const KeepPlan plan, PlanKeep(backend, TheSequence().input, policy));
  pipeline::MoveTarget target;
  target.keys.assign(keys.refs().begin(), keys.refs().end());
  target.values.assign(values.refs().begin(), values.refs().end());
  return Move(backend, TheSequence().input, policy, plan, target);
}

}  // namespace

void RegisterPipelineBenchmarks() {
  Register("plan: default blend, topk", {kTokens, kPlanBytes}, [] {
    return [policy = std::make_shared<ResolvedPolicy>(Preset("evict50"))](Backend& backend) {
      return PlanKeep(backend, TheSequence().input, *policy).status();
    };
  });
  // A quarter of k + v is written, and read back.
  Register("balanced: plan, pack", {kTokens, kPlanBytes + 2 * kKeyBytes / 4}, [] {
    return [policy = std::make_shared<ResolvedPolicy>(Preset("balanced")),
            packed = std::make_shared<PackedKv>()](Backend& backend) {
      return Pack(backend, *policy, packed.get());
    };
  });
  Register("balanced: unpack", {kTokens, 2 * kKeyBytes / 4 + 2 * kKeyBytes + kAngleBytes}, [] {
    return
        [packed = std::make_shared<Packed>()](Backend& backend) { return packed->Unpack(backend); };
  });
  Register("evict50: plan, move", {kTokens, kPlanBytes + kKeyBytes}, [] {
    return [policy = std::make_shared<ResolvedPolicy>(Preset("evict50")),
            keys = std::make_shared<support::HostKv>(PagedKv(kTokens / 2)),
            values = std::make_shared<support::HostKv>(PagedKv(kTokens / 2))](Backend& backend) {
      return Evict(backend, *policy, *keys, *values);
    };
  });
}

}  // namespace kvern::bench
