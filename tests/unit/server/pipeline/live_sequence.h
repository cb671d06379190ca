// A sequence with real bytes and every side input, and policies made from words.
#ifndef KVERN_TESTS_UNIT_SERVER_PIPELINE_LIVE_SEQUENCE_H_
#define KVERN_TESTS_UNIT_SERVER_PIPELINE_LIVE_SEQUENCE_H_

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/rotation.h"
#include "server/pipeline/token_masks.h"
#include "tests/support/host_kv.h"

namespace kvern::pipeline {

inline std::unique_ptr<Backend> RefBackend() { return MakeBackend({.name = "ref"}).value(); }

struct LiveShape {
  int64_t layers = 1;
  int64_t kv_heads = 1;
  int64_t tokens = 0;
  int64_t head_dim = 16;
};

inline support::HostKvSpec F32(const LiveShape& shape) {
  support::HostKvSpec spec;
  spec.dtype = DType::kF32;
  spec.layers = shape.layers;
  spec.kv_heads = shape.kv_heads;
  spec.tokens = shape.tokens;
  spec.head_dim = shape.head_dim;
  return spec;
}

// Two query heads per kv_head, all head_dim coordinates rotated, base 1e4.
class LiveSequence {
 public:
  explicit LiveSequence(const support::HostKvSpec& spec, uint64_t seed = 7)
      : keys_(support::RandomKv(spec, seed)), values_(support::RandomKv(spec, seed + 1)) {
    model_.num_layers = static_cast<int32_t>(spec.layers);
    model_.kv_heads = static_cast<int32_t>(spec.kv_heads);
    model_.q_heads = 2 * model_.kv_heads;
    model_.head_dim = static_cast<int32_t>(spec.head_dim);
    const int32_t bands = model_.head_dim / 2;
    for (int32_t band = 0; band < bands; ++band) {
      model_.rope.inv_freq.push_back(
          static_cast<float>(std::pow(1e4, -static_cast<double>(band) / bands)));
    }
    AddCalibrations(seed + 2);
    AddSideTensors(spec, seed + 3);
    input_.model = &model_;
    input_.calibrations = &calibrations_;
    input_.side = &side_;
    input_.keys.assign(keys_.refs().begin(), keys_.refs().end());
    input_.values.assign(values_.refs().begin(), values_.refs().end());
    input_.logical_tokens = spec.tokens;
    for (int32_t layer = 0; layer < spec.layers; ++layer) input_.layer_indices.push_back(layer);
    for (int32_t token = 0; token < spec.tokens; ++token) input_.positions.push_back(token);
  }
  LiveSequence(const LiveSequence&) = delete;

  ModelSpec& model() { return model_; }
  Calibrations& calibrations() { return calibrations_; }
  SideTensors& side() { return side_; }
  SequenceInput& input() { return input_; }
  support::HostKv& keys() { return keys_; }
  support::HostKv& values() { return values_; }
  int64_t Rows() const { return input_.Layers() * input_.KvHeads(); }

 private:
  void AddCalibrations(uint64_t seed) {
    const int32_t layers = model_.num_layers, q_heads = model_.q_heads, dim = model_.head_dim;
    auto centres = std::make_shared<QueryCentres>();
    centres->num_layers = layers;
    centres->q_heads = q_heads;
    centres->bands = dim / 2;
    const int64_t size = int64_t{layers} * q_heads * dim / 2;
    centres->mean_re = support::RandomFloats(size, seed);
    centres->mean_im = support::RandomFloats(size, seed + 1);
    for (int64_t i = 0; i < size; ++i) {
      centres->abs_mean.push_back(1.5f * std::hypot(centres->mean_re[i], centres->mean_im[i]));
    }
    calibrations_.centres = std::move(centres);

    auto moments = std::make_shared<QueryMoments>();
    moments->num_layers = layers;
    moments->q_heads = q_heads;
    moments->head_dim = dim;
    moments->mean = support::RandomFloats(int64_t{layers} * q_heads * dim, seed + 2);
    moments->cov.resize(int64_t{layers} * q_heads * dim * dim);
    for (int64_t row = 0; row < layers * q_heads; ++row) FillCovariance(row, seed + 3, &*moments);
    calibrations_.moments = std::move(moments);
  }

  // A A' / dim of a random A: positive semidefinite.
  void FillCovariance(int64_t row, uint64_t seed, QueryMoments* moments) const {
    const int64_t dim = model_.head_dim;
    const std::vector<float> a = support::RandomFloats(dim * dim, seed + row);
    for (int64_t i = 0; i < dim; ++i) {
      for (int64_t j = 0; j < dim; ++j) {
        double sum = 0;
        for (int64_t m = 0; m < dim; ++m) sum += double{a[i * dim + m]} * a[j * dim + m];
        moments->cov[(row * dim + i) * dim + j] = static_cast<float>(sum / dim);
      }
    }
  }

  void AddSideTensors(const support::HostKvSpec& spec, uint64_t seed) {
    side_.window = 40;
    side_.q_window =
        support::RandomFloats(spec.layers * model_.q_heads * side_.window * spec.head_dim, seed);
    const int64_t size = spec.layers * spec.kv_heads * spec.tokens;
    side_.attention_mass = support::RandomFloats(size, seed + 1);
    for (float& mass : side_.attention_mass) mass = std::fabs(mass) + 0.01f;
    side_.external_scores = support::RandomFloats(size, seed + 2);
  }

  support::HostKv keys_;
  support::HostKv values_;
  ModelSpec model_;
  Calibrations calibrations_;
  SideTensors side_;
  SequenceInput input_;
};

struct PolicyWords {
  std::optional<Budget> budget = KeepRatioBudget{0.5};
  std::string budgeter = "uniform";
  std::vector<std::string> scorers = {"key_norm"};
  BlendKind blend = BlendKind::kMax;
  std::string selector = "topk";
  std::string k_codec = "raw16";
  std::string v_codec = "raw16";
  int64_t sink_tokens = 4;
  int64_t recent_tokens = 8;
  double recent_share = 0.0;
  PositionMode positions = PositionMode::kKeepLogical;
  OnConflict on_conflict = OnConflict::kGrowBudget;
};

inline std::unique_ptr<Scorer> ScorerOf(const std::string& words) {
  return MakeScorer(ParseStageSpec(words).value()).value();
}

inline ResolvedPolicy PolicyOf(const PolicyWords& words) {
  ResolvedPolicy policy;
  policy.preset = "custom";
  policy.budget = words.budget;
  policy.budgeter_spec = ParseStageSpec(words.budgeter).value();
  policy.budgeter = MakeBudgeter(policy.budgeter_spec).value();
  for (const std::string& scorer : words.scorers) {
    policy.scorer_specs.push_back(ParseStageSpec(scorer).value());
    policy.scorers.push_back(ScorerOf(scorer));
  }
  policy.blend = words.blend;
  policy.selector_spec = ParseStageSpec(words.selector).value();
  policy.selector = MakeSelector(policy.selector_spec).value();
  policy.codecs = {ParseCodec(words.k_codec, Role::kKey).value(),
                   ParseCodec(words.v_codec, Role::kValue).value()};
  policy.sink_tokens = words.sink_tokens;
  policy.recent_tokens = words.recent_tokens;
  policy.recent_share = words.recent_share;
  policy.positions = words.positions;
  policy.on_conflict = words.on_conflict;
  return policy;
}

// Scores of one scorer with every token alive and, but for the sinks, a candidate.
inline absl::StatusOr<std::vector<float>> ScoresOf(const Scorer& scorer, LiveSequence& sequence,
                                                   int64_t sink_tokens = 4) {
  const SequenceInput& input = sequence.input();
  const TokenMask alive = AliveMask(input);
  const TokenMask candidates = AliveAfter(input, sink_tokens);
  const RotationTable rotation = BuildRotation(input);
  std::vector<float> scores(sequence.Rows() * input.Tokens(), 0.0f);
  const std::unique_ptr<Backend> backend = RefBackend();
  KVERN_RETURN_IF_ERROR(
      scorer.Score(*backend,
                   {.sequence = &input,
                    .alive = alive.View(),
                    .candidates = candidates.View(),
                    .sink_tokens = sink_tokens,
                    .rotation = &rotation},
                   DenseView(scores.data(), input.Layers(), input.KvHeads(), input.Tokens())));
  return scores;
}

}  // namespace kvern::pipeline

#endif  // KVERN_TESTS_UNIT_SERVER_PIPELINE_LIVE_SEQUENCE_H_
