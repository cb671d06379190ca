// Models and calibrations of random cases: every head_dim, both layouts, partial and unknown RoPE.
#include <cmath>
#include <span>

#include "absl/strings/str_cat.h"
#include "formats/safetensors.h"
#include "tests/support/random_case.h"

namespace kvern::support {
namespace {

constexpr int64_t kMaxMomentFloats = 1 << 18;
constexpr int64_t kTableSize = 1 << 16;

// A dominant direction or a few of them, as real covariances have, and a diagonal.
void AddCovariance(Rng* rng, int64_t head_dim, std::vector<float>* cov) {
  const std::vector<float> factors = rng->Normals(2 * head_dim);
  for (int64_t i = 0; i < head_dim; ++i) {
    for (int64_t j = 0; j < head_dim; ++j) {
      const float shared = factors[i] * factors[j] + factors[head_dim + i] * factors[head_dim + j];
      cov->push_back(i == j ? shared + 0.5f : shared);
    }
  }
}

}  // namespace

std::vector<float> Rng::Normals(int64_t count) {
  static const std::vector<float>* const table = [] {
    auto* values = new std::vector<float>(kTableSize);
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    for (float& value : *values) value = normal(random);
    return values;
  }();
  std::vector<float> values(count);
  uint64_t at = engine_();
  const uint64_t step = engine_() | 1;  // odd: visits the whole table
  for (float& value : values) value = (*table)[(at += step) >> 20 & (kTableSize - 1)];
  return values;
}

Geometry MakeGeometry(int64_t index) {
  Rng rng(1000 + static_cast<uint64_t>(index));
  Geometry geometry;
  geometry.index = index;
  geometry.id = absl::StrCat("geometry-", index);
  pipeline::ModelSpec& model = geometry.model;
  model.num_layers = static_cast<int32_t>(rng.Int(1, 3));
  model.kv_heads = static_cast<int32_t>(rng.Int(1, 4));
  model.q_heads = model.kv_heads * static_cast<int32_t>(rng.Int(1, 4));
  model.head_dim = rng.Pick({8, 16, 24, 40, 64, 80, 128});
  if (!rng.Chance(10)) {
    const int64_t bands = rng.Chance(25) ? model.head_dim / 4 : model.head_dim / 2;
    const double theta = rng.Pick({1e4, 5e5});
    for (int64_t band = 0; band < bands; ++band) {
      const double exponent = -static_cast<double>(band) / static_cast<double>(bands);
      model.rope.inv_freq.push_back(static_cast<float>(std::pow(theta, exponent)));
    }
    model.rope.layout = rng.Pick({RopeLayout::kHalf, RopeLayout::kInterleaved});
    if (rng.Chance(20)) model.rope.attention_scaling = 1.25;
  }
  const int64_t dims = model.head_dim;
  geometry.has_moments =
      int64_t{model.num_layers} * model.q_heads * dims * dims <= kMaxMomentFloats;
  return geometry;
}

std::string CentresFile(const Geometry& geometry) {
  const pipeline::ModelSpec& model = geometry.model;
  const int64_t bands = model.rope.Bands() > 0 ? model.rope.Bands() : model.head_dim / 2;
  Rng rng(2'000'000 + static_cast<uint64_t>(geometry.index));
  const std::vector<int64_t> shape = {model.num_layers, model.q_heads, bands};
  const int64_t count = shape[0] * shape[1] * shape[2];
  const std::vector<float> re = rng.Normals(count);
  const std::vector<float> im = rng.Normals(count);
  std::vector<float> abs = rng.Normals(count);
  for (int64_t i = 0; i < count; ++i) abs[i] = 1.01f * std::hypot(re[i], im[i]) + std::abs(abs[i]);
  std::vector<float> sensitivity = rng.Normals(model.num_layers);
  for (float& value : sensitivity) value = std::abs(value);
  formats::Safetensors file;
  file.metadata["format"] = "kvern-calibration/1";
  file.tensors["q_mean_re"] = {"F32", shape, std::as_bytes(std::span(re))};
  file.tensors["q_mean_im"] = {"F32", shape, std::as_bytes(std::span(im))};
  file.tensors["q_abs_mean"] = {"F32", shape, std::as_bytes(std::span(abs))};
  file.tensors["layer_sensitivity"] = {
      "F32", {model.num_layers}, std::as_bytes(std::span(sensitivity))};
  return formats::WriteSafetensors(file);
}

std::string MomentsFile(const Geometry& geometry) {
  const pipeline::ModelSpec& model = geometry.model;
  Rng rng(3'000'000 + static_cast<uint64_t>(geometry.index));
  const int64_t heads = int64_t{model.num_layers} * model.q_heads;
  const std::vector<float> mean = rng.Normals(heads * model.head_dim);
  std::vector<float> cov;
  for (int64_t head = 0; head < heads; ++head) AddCovariance(&rng, model.head_dim, &cov);
  formats::Safetensors file;
  file.metadata["format"] = "kvern-query-moments/1";
  file.tensors["q_mean"] = {
      "F32", {model.num_layers, model.q_heads, model.head_dim}, std::as_bytes(std::span(mean))};
  file.tensors["q_cov"] = {"F32",
                           {model.num_layers, model.q_heads, model.head_dim, model.head_dim},
                           std::as_bytes(std::span(cov))};
  return formats::WriteSafetensors(file);
}

}  // namespace kvern::support
