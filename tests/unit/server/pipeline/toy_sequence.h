// A sequence with geometry and no bytes: all that planning on the host reads.
#ifndef KVERN_TESTS_UNIT_SERVER_PIPELINE_TOY_SEQUENCE_H_
#define KVERN_TESTS_UNIT_SERVER_PIPELINE_TOY_SEQUENCE_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "server/pipeline/sequence_input.h"

namespace kvern::pipeline {

struct ToyShape {
  int64_t layers = 2;
  int32_t kv_heads = 2;
  int64_t tokens = 256;
  int32_t head_dim = 64;
  DType dtype = DType::kBF16;
};

class ToySequence {
 public:
  explicit ToySequence(const ToyShape& shape) {
    model_.num_layers = static_cast<int32_t>(shape.layers);
    model_.q_heads = shape.kv_heads;
    model_.kv_heads = shape.kv_heads;
    model_.head_dim = shape.head_dim;
    input_.model = &model_;
    input_.calibrations = &calibrations_;
    input_.side = &side_;
    input_.logical_tokens = shape.tokens;
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      input_.layer_indices.push_back(static_cast<int32_t>(layer));
      input_.keys.push_back(
          DenseKvRef(shape.dtype, nullptr, shape.kv_heads, shape.tokens, shape.head_dim));
    }
    input_.values = input_.keys;
    for (int32_t token = 0; token < shape.tokens; ++token) input_.positions.push_back(token);
  }
  ToySequence(const ToySequence&) = delete;

  void SetSensitivity(std::vector<float> sensitivity) {
    auto centres = std::make_shared<QueryCentres>();
    centres->layer_sensitivity = std::move(sensitivity);
    calibrations_.centres = std::move(centres);
  }
  // [layers * kv_heads] tokens that each head holds.
  void SetLengths(std::vector<int32_t> lengths) {
    lengths_ = std::move(lengths);
    for (int64_t layer = 0; layer < input_.Layers(); ++layer) {
      const int32_t* of_layer = lengths_.data() + layer * input_.KvHeads();
      input_.keys[static_cast<size_t>(layer)].lengths = of_layer;
      input_.values[static_cast<size_t>(layer)].lengths = of_layer;
    }
  }
  SequenceInput& input() { return input_; }

 private:
  ModelSpec model_;
  Calibrations calibrations_;
  SideTensors side_;
  std::vector<int32_t> lengths_;
  SequenceInput input_;
};

}  // namespace kvern::pipeline

#endif  // KVERN_TESTS_UNIT_SERVER_PIPELINE_TOY_SEQUENCE_H_
