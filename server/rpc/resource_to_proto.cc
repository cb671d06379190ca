// What the server keeps, told back in the words it was told.
#include "server/rpc/resource_to_proto.h"

#include "server/rpc/compress_to_proto.h"
#include "server/rpc/name_from_proto.h"

namespace kvern::rpc {
namespace {

void ToProto(const memory::PoolView& view, v1::KvView* out) {
  out->set_region(view.region);
  out->set_base_offset(view.base_offset);
  out->set_block_stride(view.strides.block);
  out->set_head_stride(view.strides.head);
  out->set_token_stride(view.strides.token);
  out->set_dim_stride(view.strides.dim);
}

v1::Engine ToProto(memory::EngineLabel engine) {
  switch (engine) {
    case memory::EngineLabel::kVllm:
      return v1::ENGINE_VLLM;
    case memory::EngineLabel::kSglang:
      return v1::ENGINE_SGLANG;
    case memory::EngineLabel::kTrtllm:
      return v1::ENGINE_TRTLLM;
    case memory::EngineLabel::kLlamacpp:
      return v1::ENGINE_LLAMACPP;
    case memory::EngineLabel::kTransformers:
      return v1::ENGINE_TRANSFORMERS;
    case memory::EngineLabel::kOther:
      break;
  }
  return v1::ENGINE_OTHER;
}

void ToProto(const pipeline::RopeSpec& rope, v1::Rope* out) {
  out->set_layout(rope.layout == RopeLayout::kInterleaved ? v1::ROPE_LAYOUT_INTERLEAVED
                                                          : v1::ROPE_LAYOUT_HALF);
  out->set_rotary_dim(2 * rope.Bands());
  out->mutable_inv_freq()->Add(rope.inv_freq.begin(), rope.inv_freq.end());
  out->set_attention_scaling(rope.attention_scaling);
}

}  // namespace

void ToProto(const engine::RegisteredModel& model, v1::Model* out) {
  out->set_name(MakeName(model.id, Collection::kModels));
  v1::ModelSpec* spec = out->mutable_spec();
  spec->set_num_layers(model.spec.num_layers);
  spec->set_q_heads(model.spec.q_heads);
  spec->set_kv_heads(model.spec.kv_heads);
  spec->set_head_dim(model.spec.head_dim);
  spec->set_display_name(model.spec.display_name);
  if (model.spec.rope.Bands() > 0) ToProto(model.spec.rope, spec->mutable_rope());
  for (const std::string& sha256 : model.calibrations) {
    out->add_calibrations(MakeName(sha256, Collection::kCalibrations));
  }
}

void ToProto(const engine::ObservedQueries::Facts& facts, v1::ObservedQueries* out) {
  out->mutable_layer_tokens()->Add(facts.layer_tokens.begin(), facts.layer_tokens.end());
  out->set_confident_tokens(facts.confident_tokens);
  out->set_confident(facts.confident);
  out->mutable_mean_error()->Add(facts.mean_errors.begin(), facts.mean_errors.end());
  out->set_size_bytes(facts.size_bytes);
}

void ToProto(const engine::CalibrationArtifact& artifact, v1::Calibration* out) {
  out->set_name(MakeName(artifact.sha256, Collection::kCalibrations));
  out->set_format(artifact.format);
  out->set_size_bytes(artifact.size_bytes);
  if (artifact.centres != nullptr) {
    out->set_num_layers(artifact.centres->num_layers);
    out->set_q_heads(artifact.centres->q_heads);
    out->set_head_dim(2 * artifact.centres->bands);
    out->set_has_layer_sensitivity(!artifact.centres->layer_sensitivity.empty());
  } else if (artifact.moments != nullptr) {
    out->set_num_layers(artifact.moments->num_layers);
    out->set_q_heads(artifact.moments->q_heads);
    out->set_head_dim(artifact.moments->head_dim);
  }
}

void ToProto(const memory::Pool& pool, v1::Pool* out) {
  const memory::PoolSpec& spec = pool.spec;
  out->set_name(MakeName(spec.id, Collection::kPools));
  out->set_model(MakeName(spec.model, Collection::kModels));
  out->set_dtype(ToProto(spec.dtype));
  out->set_block_tokens(spec.block_tokens);
  out->set_num_blocks(spec.num_blocks);
  for (size_t i = 0; i < spec.regions.size(); ++i) out->add_regions();
  for (const memory::PoolLayer& layer : spec.layers) {
    v1::PoolLayer* added = out->add_layers();
    added->set_layer(layer.layer);
    ToProto(layer.k, added->mutable_k());
    ToProto(layer.v, added->mutable_v());
  }
  out->set_max_shape_class(ToProto(static_cast<pipeline::ShapeClass>(spec.max_shape_class)));
  out->set_engine(ToProto(spec.engine));
  out->set_read_only(spec.read_only);
}

void ToProto(const memory::StoredSequence& sequence, const StoredState& state,
             v1::StoredSequence* out) {
  const memory::StoredInfo& info = sequence.Info();
  out->set_name(MakeName(info.id, Collection::kSequences));
  out->set_model(MakeName(info.model, Collection::kModels));
  out->mutable_layer_indices()->Add(info.layer_indices.begin(), info.layer_indices.end());
  out->set_dtype(ToProto(info.dtype));
  out->set_num_tokens(info.num_tokens);
  out->set_num_logical_tokens(info.logical_tokens);
  out->set_epoch(info.epoch);
  out->set_k_codec(info.k_codec);
  out->set_v_codec(info.v_codec);
  out->set_stored_bytes(sequence.StoredBytes());
  out->set_released(state.released);
  if (state.detail == Detail::kBrief) return;
  out->mutable_lengths()->Add(info.lengths.begin(), info.lengths.end());
  out->mutable_positions()->mutable_values()->Add(info.positions.begin(), info.positions.end());
  out->mutable_positions()->set_per_head(info.per_head_positions);
}

}  // namespace kvern::rpc
