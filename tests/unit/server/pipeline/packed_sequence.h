// A sequence cut to half and packed, and memory to unpack it into.
#ifndef KVERN_TESTS_UNIT_SERVER_PIPELINE_PACKED_SEQUENCE_H_
#define KVERN_TESTS_UNIT_SERVER_PIPELINE_PACKED_SEQUENCE_H_

#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {

struct PackedSequence {
  LiveSequence sequence;
  ResolvedPolicy policy;
  std::unique_ptr<Backend> backend = RefBackend();
  KeepPlan plan;
  PackedKv packed;

  PackedSequence(const support::HostKvSpec& spec, const PolicyWords& words)
      : sequence(spec), policy(PolicyOf(words)) {
    plan = PlanKeep(*backend, sequence.input(), policy).value();
    packed = Pack(*backend, sequence.input(), policy, plan, {}).value();
  }
};

// Dense keys and values [layers, kv_heads, tokens, head_dim] of a sequence's geometry.
class DenseTarget {
 public:
  DenseTarget(const SequenceInput& input, int64_t tokens)
      : keys_(SpecOf(input, tokens)), values_(SpecOf(input, tokens)) {}

  UnpackTarget ToUnpack() const { return {Refs(keys_), Refs(values_)}; }
  MoveTarget ToMove() const {
    MoveTarget target;
    target.keys = Refs(keys_);
    target.values = Refs(values_);
    return target;
  }
  const support::HostKv& keys() const { return keys_; }
  const support::HostKv& values() const { return values_; }
  support::HostKv& keys() { return keys_; }

 private:
  static support::HostKvSpec SpecOf(const SequenceInput& input, int64_t tokens) {
    support::HostKvSpec spec = F32({.layers = input.Layers(),
                                    .kv_heads = input.KvHeads(),
                                    .tokens = tokens,
                                    .head_dim = input.model->head_dim});
    spec.dtype = input.keys[0].dtype;
    return spec;
  }
  static std::vector<KvRef> Refs(const support::HostKv& kv) {
    return {kv.refs().begin(), kv.refs().end()};
  }

  support::HostKv keys_;
  support::HostKv values_;
};

// |got - want| / |want| over the kept rows.
inline double RelativeError(const KeepPlan& plan, const support::HostKv& source,
                            const support::HostKv& got) {
  double error = 0, norm = 0;
  for (int64_t row = 0; row < plan.keep.layers * plan.keep.kv_heads; ++row) {
    const int64_t layer = row / plan.keep.kv_heads, head = row % plan.keep.kv_heads;
    for (int64_t slot = 0; slot < plan.keep.Count(layer, head); ++slot) {
      const int32_t token = plan.keep.Row(layer, head)[slot];
      for (int64_t d = 0; d < source.spec().head_dim; ++d) {
        const double want = source.Get(layer, head, token, d);
        error += std::pow(got.Get(layer, head, slot, d) - want, 2);
        norm += want * want;
      }
    }
  }
  return std::sqrt(error / norm);
}

}  // namespace kvern::pipeline

#endif  // KVERN_TESTS_UNIT_SERVER_PIPELINE_PACKED_SEQUENCE_H_
