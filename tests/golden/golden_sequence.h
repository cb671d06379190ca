// Golden inputs as the pipeline takes them: real caches with their calibrations, synthetic tensors.
#ifndef KVERN_TESTS_GOLDEN_GOLDEN_SEQUENCE_H_
#define KVERN_TESTS_GOLDEN_GOLDEN_SEQUENCE_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "server/pipeline/sequence_input.h"
#include "tests/golden/golden_file.h"

namespace kvern::golden {

// Owns all that its input borrows.
class GoldenSequence {
 public:
  // "pride-1024" with the calibration and moments of "smollm2", "qwen-512" with those of "qwen".
  static std::unique_ptr<GoldenSequence> Real(const std::string& cache) {
    const GoldenFile& file = GoldenFile::Of(cache);
    const std::string model = cache == "pride-1024" ? "smollm2" : "qwen";
    auto sequence = std::unique_ptr<GoldenSequence>(new GoldenSequence());
    sequence->TakeKv(file.At("k"), file.At("v"), -1);
    sequence->input_.layer_indices = file.Ints("layer_indices");
    sequence->TakeModel(file, "", file.At("q_window").shape[1]);
    sequence->input_.positions = file.Ints("positions");
    sequence->input_.logical_tokens = static_cast<int64_t>(file.Number("logical_tokens"));
    sequence->TakeSide(file, "q_window", "attention_mass");
    sequence->TakeCentres(GoldenFile::Of(model + "-calibration"), "");
    sequence->TakeMoments(GoldenFile::Of(model + "-query-moments"), "");
    return sequence;
  }

  // The `in.*` of a synthetic file; `tokens` >= 0 takes the first of them, at t = tokens.
  static std::unique_ptr<GoldenSequence> Synthetic(const std::string& name, int64_t tokens = -1) {
    const GoldenFile& file = GoldenFile::Of("golden/" + name);
    auto sequence = std::unique_ptr<GoldenSequence>(new GoldenSequence());
    sequence->TakeKv(file.At("in.k"), file.At("in.v"), tokens);
    for (int32_t i = 0; i < sequence->input_.Layers(); ++i) {
      sequence->input_.layer_indices.push_back(i);
    }
    sequence->TakeModel(file, "in.", file.At("in.q_abs_mean").shape[1]);
    if (tokens < 0) {
      sequence->input_.positions = file.Ints("in.positions");
      sequence->input_.logical_tokens = static_cast<int64_t>(file.Number("t"));
    } else {
      sequence->UseSlotsAsPositions();
    }
    sequence->TakeSide(file, "in.q_window", "in.attn_mass");
    sequence->TakeCentres(file, "in.");
    sequence->TakeMoments(file, "in.");
    return sequence;
  }
  GoldenSequence(const GoldenSequence&) = delete;
  GoldenSequence& operator=(const GoldenSequence&) = delete;

  pipeline::SequenceInput& input() { return input_; }
  pipeline::ModelSpec& model() { return model_; }
  pipeline::SideTensors& side() { return side_; }
  pipeline::Calibrations& calibrations() { return calibrations_; }
  int64_t Rows() const { return input_.Layers() * input_.KvHeads(); }

  // kvpress counts slots: what it computed with positions knows no gaps.
  void UseSlotsAsPositions() {
    input_.positions.resize(input_.Tokens());
    std::iota(input_.positions.begin(), input_.positions.end(), 0);
    input_.logical_tokens = input_.Tokens();
  }

  // Only query head `head` of each group, so that group scores are that head's own.
  void TakeQueryHead(int64_t head) {
    const pipeline::QueryCentres& all = *calibrations_.centres;
    const int64_t group = model_.q_heads / model_.kv_heads;
    auto one = std::make_shared<pipeline::QueryCentres>();
    one->num_layers = all.num_layers;
    one->q_heads = model_.kv_heads;
    one->bands = all.bands;
    for (int64_t row = 0; row < int64_t{all.num_layers} * model_.kv_heads; ++row) {
      const int64_t from = (row * group + head) * all.bands;
      const auto copy = [&](const std::vector<float>& in, std::vector<float>* out) {
        out->insert(out->end(), in.begin() + from, in.begin() + from + all.bands);
      };
      copy(all.mean_re, &one->mean_re);
      copy(all.mean_im, &one->mean_im);
      copy(all.abs_mean, &one->abs_mean);
    }
    model_.q_heads = model_.kv_heads;
    calibrations_.centres = std::move(one);
  }

  // Keys and values at f32, exactly as they are: so that what is written back is not rounded.
  void Widen() {
    for (std::vector<KvRef>* role : {&input_.keys, &input_.values}) {
      for (KvRef& layer : *role) layer = Widened(layer);
    }
  }

  // The cache after each (layer, kv_head) kept `kept` [layers, kv_heads, count].
  void CompactTo(const std::vector<int32_t>& kept) {
    const int64_t count = static_cast<int64_t>(kept.size()) / Rows();
    for (std::vector<KvRef>* role : {&input_.keys, &input_.values}) {
      for (int64_t layer = 0; layer < input_.Layers(); ++layer) {
        const KvRef from = (*role)[layer];
        const int64_t bytes = int64_t{from.head_dim} * SizeOf(from.dtype);
        KvRef to = DenseKvRef(from.dtype, Allocate(from.kv_heads * count * bytes), from.kv_heads,
                              count, from.head_dim);
        for (int64_t head = 0; head < from.kv_heads; ++head) {
          for (int64_t slot = 0; slot < count; ++slot) {
            const int32_t token = kept[(layer * from.kv_heads + head) * count + slot];
            std::memcpy(to.Address(head, slot), from.Address(head, token), bytes);
          }
        }
        (*role)[layer] = to;
      }
    }
    input_.positions = kept;
    input_.per_head_positions = true;
  }

  // Moments of the cache's own layers, in place of the model's.
  void SetMoments(std::vector<float> mean, std::vector<float> cov) {
    auto moments = std::make_shared<pipeline::QueryMoments>();
    moments->num_layers = model_.num_layers;
    moments->q_heads = model_.q_heads;
    moments->head_dim = model_.head_dim;
    const int64_t row = int64_t{model_.q_heads} * model_.head_dim;
    moments->mean.resize(model_.num_layers * row);
    moments->cov.resize(model_.num_layers * row * model_.head_dim);
    for (int64_t layer = 0; layer < input_.Layers(); ++layer) {
      const int64_t to = input_.layer_indices[layer];
      std::copy_n(mean.begin() + layer * row, row, moments->mean.begin() + to * row);
      std::copy_n(cov.begin() + layer * row * model_.head_dim, row * model_.head_dim,
                  moments->cov.begin() + to * row * model_.head_dim);
    }
    calibrations_.moments = std::move(moments);
    calibrations_.cache_key = "";
  }
  // A covariance of zero: what the peer calls `nocov`.
  void DropCovariance() {
    auto moments = std::make_shared<pipeline::QueryMoments>(*calibrations_.moments);
    std::fill(moments->cov.begin(), moments->cov.end(), 0.0f);
    calibrations_.moments = std::move(moments);
  }

 private:
  GoldenSequence() {
    input_.model = &model_;
    input_.calibrations = &calibrations_;
    input_.side = &side_;
  }

  std::byte* Allocate(int64_t bytes) {
    memory_.push_back(std::make_unique<std::vector<std::byte>>(bytes));
    return memory_.back()->data();
  }

  KvRef Widened(const KvRef& from) {
    KvRef to = DenseKvRef(DType::kF32, Allocate(from.kv_heads * from.tokens * from.head_dim * 4),
                          from.kv_heads, from.tokens, from.head_dim);
    for (int64_t head = 0; head < from.kv_heads; ++head) {
      for (int64_t token = 0; token < from.tokens; ++token) {
        for (int64_t d = 0; d < from.head_dim; ++d) {
          BFloat16 value;
          std::memcpy(&value, from.Address(head, token) + 2 * d, 2);
          const float wide = ToFloat(value);
          std::memcpy(to.Address(head, token) + 4 * d, &wide, 4);
        }
      }
    }
    return to;
  }

  // [layers, kv_heads, tokens, head_dim], or the first `tokens` of a single row.
  void TakeKv(const formats::TensorEntry& k, const formats::TensorEntry& v, int64_t tokens) {
    const int64_t layers = k.shape[0], heads = k.shape[1], head_dim = k.shape[3];
    if (tokens < 0) tokens = k.shape[2];
    const DType dtype = DTypeOf(k);
    const int64_t layer_bytes = heads * k.shape[2] * head_dim * SizeOf(dtype);
    for (int64_t layer = 0; layer < layers; ++layer) {
      for (const auto& [tensor, refs] : {std::pair(&k, &input_.keys), {&v, &input_.values}}) {
        std::byte* bytes = Allocate(layer_bytes);
        std::memcpy(bytes, tensor->bytes.data() + layer * layer_bytes, layer_bytes);
        refs->push_back(DenseKvRef(dtype, bytes, heads, tokens, head_dim));
      }
    }
    model_.kv_heads = static_cast<int32_t>(heads);
    model_.head_dim = static_cast<int32_t>(head_dim);
  }

  void TakeModel(const GoldenFile& file, const std::string& prefix, int64_t q_heads) {
    model_.q_heads = static_cast<int32_t>(q_heads);
    model_.num_layers = input_.layer_indices.back() + 1;
    model_.rope.inv_freq = file.Floats(prefix + "inv_freq");
    const auto& metadata = file.contents().metadata;
    if (metadata.at("rope_layout") == "interleaved") model_.rope.layout = RopeLayout::kInterleaved;
    const auto scaling = metadata.find("rope_attention_scaling");
    if (scaling != metadata.end()) model_.rope.attention_scaling = std::stod(scaling->second);
  }

  void TakeSide(const GoldenFile& file, const std::string& window, const std::string& mass) {
    if (file.Has(window)) {
      side_.q_window = file.Floats(window);
      side_.window = file.At(window).shape[2];
    }
    if (file.Has(mass)) side_.attention_mass = file.Floats(mass);
  }

  void TakeCentres(const GoldenFile& file, const std::string& prefix) {
    auto centres = std::make_shared<pipeline::QueryCentres>();
    const std::vector<int64_t>& shape = file.At(prefix + "q_abs_mean").shape;
    centres->num_layers = static_cast<int32_t>(shape[0]);
    centres->q_heads = static_cast<int32_t>(shape[1]);
    centres->bands = static_cast<int32_t>(shape[2]);
    centres->mean_re = file.Floats(prefix + "q_mean_re");
    centres->mean_im = file.Floats(prefix + "q_mean_im");
    centres->abs_mean = file.Floats(prefix + "q_abs_mean");
    calibrations_.centres = std::move(centres);
  }

  void TakeMoments(const GoldenFile& file, const std::string& prefix) {
    if (!file.Has(prefix + "q_cov")) return;
    auto moments = std::make_shared<pipeline::QueryMoments>();
    const std::vector<int64_t>& shape = file.At(prefix + "q_cov").shape;
    moments->num_layers = static_cast<int32_t>(shape[0]);
    moments->q_heads = static_cast<int32_t>(shape[1]);
    moments->head_dim = static_cast<int32_t>(shape[2]);
    moments->mean = file.Floats(prefix + "q_mean");
    moments->cov = file.Floats(prefix + "q_cov");
    calibrations_.moments = std::move(moments);
  }

  std::vector<std::unique_ptr<std::vector<std::byte>>> memory_;
  pipeline::ModelSpec model_;
  pipeline::Calibrations calibrations_;
  pipeline::SideTensors side_;
  pipeline::SequenceInput input_;
};

}  // namespace kvern::golden

#endif  // KVERN_TESTS_GOLDEN_GOLDEN_SEQUENCE_H_
