// Stages of the pipeline as a request runs them: what stands between the ops is measured too.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "client/cli/bench/ops.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/rope_angles.h"
#include "server/pipeline/score_sets.h"

namespace kvern::bench {
namespace {

using pipeline::KeepPlan;
using pipeline::PackedKv;
using pipeline::ResolvedPolicy;

// Moments of queries near a random mean: any positive semidefinite covariance costs the same.
std::shared_ptr<const pipeline::QueryMoments> SomeMoments(int64_t q_heads, int64_t head_dim) {
  auto moments = std::make_shared<pipeline::QueryMoments>();
  moments->num_layers = 1;
  moments->q_heads = static_cast<int32_t>(q_heads);
  moments->head_dim = static_cast<int32_t>(head_dim);
  moments->mean = NormalFloats(q_heads * head_dim, /*seed=*/8);
  moments->cov.resize(q_heads * head_dim * head_dim);
  for (int64_t head = 0; head < q_heads; ++head) {
    const std::vector<float> a = NormalFloats(head_dim, 9 + head);
    for (int64_t row = 0; row < head_dim; ++row) {
      for (int64_t column = 0; column < head_dim; ++column) {
        moments->cov[(head * head_dim + row) * head_dim + column] =
            a[row] * a[column] + (row == column ? 1.0f : 0.0f);
      }
    }
  }
  return moments;
}

// The layer as a request's sequence.
struct Sequence {
  pipeline::ModelSpec model;
  pipeline::Calibrations calibrations;
  pipeline::SideTensors side;
  pipeline::SequenceInput input;

  explicit Sequence(const Setting& at) {
    const Shape& shape = at.shape();
    model.num_layers = 1;
    model.q_heads = static_cast<int32_t>(at.q_heads);
    model.kv_heads = static_cast<int32_t>(shape.kv_heads);
    model.head_dim = static_cast<int32_t>(shape.head_dim);
    for (int32_t band = 0; band < shape.Bands(); ++band) {
      model.rope.inv_freq.push_back(
          static_cast<float>(std::pow(1e4, -double{1} * band / shape.Bands())));
    }
    model.rope.angles = std::make_shared<pipeline::RopeAngles>();  // as a registered model has
    calibrations.moments = SomeMoments(at.q_heads, shape.head_dim);
    // Named calibrations keep their basis between calls.
    calibrations.cache_key =
        "bench/" + std::to_string(at.q_heads) + "x" + std::to_string(shape.head_dim);
    input.model = &model;
    input.calibrations = &calibrations;
    input.side = &side;
    input.layer_indices = {0};
    input.keys = {at.layer->keys.refs()[0]};
    input.values = {at.layer->values.refs()[0]};
    for (int64_t token = 0; token < shape.tokens; ++token) {
      input.positions.push_back(static_cast<int32_t>(token));
    }
    input.logical_tokens = shape.tokens;
  }
  Sequence(const Sequence&) = delete;
};

absl::StatusOr<ResolvedPolicy> Preset(const std::string& name) {
  pipeline::Policy policy;
  policy.preset = name;
  pipeline::Availability available;
  available.inputs = pipeline::kNeedsMoments | pipeline::kNeedsRope | pipeline::kNeedsValues;
  return pipeline::Resolve(policy, available);
}

struct Request {
  Backend& backend;
  Sequence sequence;
  ResolvedPolicy policy;

  static absl::StatusOr<std::shared_ptr<Request>> Make(const Setting& at,
                                                       const std::string& preset) {
    KVERN_ASSIGN_OR_RETURN(ResolvedPolicy policy, Preset(preset));
    return std::shared_ptr<Request>(new Request{*at.backend, Sequence(at), std::move(policy)});
  }
  absl::StatusOr<KeepPlan> Plan() { return PlanKeep(backend, sequence.input, policy); }
  absl::StatusOr<PackedKv> Pack(const KeepPlan& plan) {
    return pipeline::Pack(backend, sequence.input, policy, plan, {});
  }
};

// Bytes that a plan by the default scorers reads and writes at least.
int64_t PlanBytes(const Shape& shape) {
  return 2 * shape.KeyBytes() + shape.AngleBytes() + shape.ScoreBytes();
}
// A quarter of k + v.
int64_t BalancedBytes(const Shape& shape) { return 2 * shape.KeyBytes() / 4; }

// Keys and values that something is written to.
struct Target {
  Target(const Shape& shape, int64_t tokens) : keys(shape, tokens), values(shape, tokens) {}
  PagedRows keys;
  PagedRows values;
};

}  // namespace

absl::StatusOr<PreparedOp> PrepareDefaultScores(const Setting& at) {
  KVERN_ASSIGN_OR_RETURN(const auto request, Request::Make(at, "evict50"));
  const auto run = [=]() -> absl::Status {
    const pipeline::ScoreInput input = {.sequence = &request->sequence.input,
                                        .alive = at.layer->All(),
                                        .candidates = at.layer->All(),
                                        .sink_tokens = request->policy.sink_tokens,
                                        .rotation = &at.layer->rotation};
    const std::span<const pipeline::ScoreInput> cohort(&input, 1);
    KVERN_ASSIGN_OR_RETURN(
        pipeline::ScoreSets scores,
        pipeline::ScoreSets::Make(*at.backend, cohort,
                                  static_cast<int64_t>(request->policy.scorers.size())));
    return scores.Fill(*at.backend, request->policy, cohort);
  };
  return PreparedOp{run, PlanBytes(at.shape())};
}

absl::StatusOr<PreparedOp> PreparePlan(const Setting& at) {
  KVERN_ASSIGN_OR_RETURN(const auto request, Request::Make(at, "evict50"));
  return PreparedOp{[request] { return request->Plan().status(); }, PlanBytes(at.shape())};
}

absl::StatusOr<PreparedOp> PrepareCohort(const Setting& at) {
  KVERN_ASSIGN_OR_RETURN(const auto request, Request::Make(at, "evict50"));
  const auto parts = std::make_shared<std::vector<pipeline::SequenceInput>>();
  for (int64_t first = 0; first < at.shape().tokens; first += kCohortTokens) {
    const int64_t tokens = std::min(kCohortTokens, at.shape().tokens - first);
    pipeline::SequenceInput& part = parts->emplace_back(request->sequence.input);
    for (KvRef* ref : {&part.keys[0], &part.values[0]}) {
      ref->block_ids += first / kBlockTokens;
      ref->tokens = tokens;
    }
    part.positions.resize(tokens);
    part.logical_tokens = tokens;
  }
  const auto run = [=]() -> absl::Status {
    std::vector<pipeline::KeepTask> tasks;
    for (const pipeline::SequenceInput& part : *parts) {
      tasks.push_back({.input = &part, .policy = &request->policy, .want_scores = true});
    }
    KVERN_ASSIGN_OR_RETURN(const std::vector<pipeline::KeepOutcome> plans,
                           PlanKeep(request->backend, tasks));
    for (const pipeline::KeepOutcome& plan : plans) KVERN_RETURN_IF_ERROR(plan.status());
    return absl::OkStatus();
  };
  return PreparedOp{run, PlanBytes(at.shape())};
}

absl::StatusOr<PreparedOp> PreparePack(const Setting& at) {
  KVERN_ASSIGN_OR_RETURN(const auto request, Request::Make(at, "balanced"));
  const auto packed = std::make_shared<PackedKv>();  // kept, as a store keeps it
  const auto run = [=]() -> absl::Status {
    KVERN_ASSIGN_OR_RETURN(const KeepPlan plan, request->Plan());
    KVERN_ASSIGN_OR_RETURN(*packed, request->Pack(plan));
    return absl::OkStatus();
  };
  return PreparedOp{run, PlanBytes(at.shape()) + BalancedBytes(at.shape())};
}

absl::StatusOr<PreparedOp> PrepareUnpack(const Setting& at) {
  KVERN_ASSIGN_OR_RETURN(const auto request, Request::Make(at, "balanced"));
  KVERN_ASSIGN_OR_RETURN(KeepPlan planned, request->Plan());
  KVERN_ASSIGN_OR_RETURN(PackedKv made, request->Pack(planned));
  const auto plan = std::make_shared<const KeepPlan>(std::move(planned));
  const auto packed = std::make_shared<const PackedKv>(std::move(made));
  const auto target = std::make_shared<Target>(at.shape(), at.shape().tokens);
  const auto run = [=] {
    return pipeline::Unpack(request->backend, request->sequence.model, *packed,
                            plan->kept_positions,
                            {{target->keys.refs()[0]}, {target->values.refs()[0]}});
  };
  return PreparedOp{
      run, BalancedBytes(at.shape()) + 2 * at.shape().KeyBytes() + at.shape().AngleBytes()};
}

absl::StatusOr<PreparedOp> PrepareEvict(const Setting& at) {
  KVERN_ASSIGN_OR_RETURN(const auto request, Request::Make(at, "evict50"));
  const auto target = std::make_shared<Target>(at.shape(), at.shape().tokens);
  const auto run = [=]() -> absl::Status {
    KVERN_ASSIGN_OR_RETURN(const KeepPlan plan, request->Plan());
    pipeline::MoveTarget to;
    to.keys = {target->keys.refs()[0]};
    to.values = {target->values.refs()[0]};
    return Move(request->backend, request->sequence.input, request->policy, plan, to);
  };
  return PreparedOp{run, PlanBytes(at.shape()) + at.shape().KeyBytes()};
}

}  // namespace kvern::bench
