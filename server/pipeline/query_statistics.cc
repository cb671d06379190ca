// Second moments are symmetric: only the upper triangle is summed, in rows that start at a multiple
// of eight, so that every inner loop is whole groups of eight.
#include "server/pipeline/query_statistics.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/base/math.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kGroup = 8;
constexpr int64_t kNearTokens = 64;  // queries that stay in the nearest cache

// Where row i of a triangle starts, counted so that its element of column j is at RowStart + j.
int64_t RowStart(int64_t row, int64_t head_dim) {
  const int64_t group = row / kGroup;
  const int64_t before = kGroup * (group * head_dim - kGroup * group * (group - 1) / 2);
  const int64_t width = head_dim - group * kGroup;
  return before + (row % kGroup) * width - group * kGroup;
}

int64_t TriangleSize(int64_t head_dim) { return head_dim * (head_dim + kGroup) / 2; }

int64_t BandsOf(const ModelSpec& model) {
  return model.rope.Bands() > 0 ? model.rope.Bands() : model.head_dim / 2;
}

// The two dims that band f rotates.
std::pair<int64_t, int64_t> DimsOf(RopeLayout layout, int64_t band, int64_t bands) {
  if (layout == RopeLayout::kHalf) return {band, band + bands};
  return {2 * band, 2 * band + 1};
}

int64_t RowsOf(const ModelSpec& model) { return int64_t{model.num_layers} * model.q_heads; }

}  // namespace

void TurnBack(const ModelSpec& model, const std::vector<int32_t>& positions, QueryBatch* batch) {
  const RopeSpec& rope = model.rope;
  const int64_t bands = rope.Bands();
  std::vector<double> cosines(positions.size() * bands), sines(cosines.size());
  for (size_t token = 0; token < positions.size(); ++token) {
    for (int64_t band = 0; band < bands; ++band) {
      const double angle = double{rope.inv_freq[band]} * positions[token];
      double sine, cosine;
      SinCos(angle, &sine, &cosine);
      cosines[token * bands + band] = cosine / rope.attention_scaling;
      sines[token * bands + band] = sine / rope.attention_scaling;
    }
  }
  const int64_t rows = static_cast<int64_t>(batch->layers.size()) * model.q_heads;
  for (int64_t row = 0; row < rows * batch->tokens; ++row) {
    float* query = batch->queries.data() + row * model.head_dim;
    const int64_t angles = (row % batch->tokens) * bands;
    for (int64_t band = 0; band < bands; ++band) {
      const auto [first, second] = DimsOf(rope.layout, band, bands);
      const double x = query[first], y = query[second];
      const double cosine = cosines[angles + band], sine = sines[angles + band];
      query[first] = static_cast<float>(x * cosine + y * sine);
      query[second] = static_cast<float>(y * cosine - x * sine);
    }
  }
}

QueryStatistics::QueryStatistics(const ModelSpec& model)
    : layers_(model.num_layers),
      q_heads_(model.q_heads),
      head_dim_(model.head_dim),
      bands_(BandsOf(model)),
      layout_(model.rope.layout),
      triangle_(TriangleSize(model.head_dim)),
      tokens_(model.num_layers),
      means_(RowsOf(model) * head_dim_),
      centres_(RowsOf(model) * bands_),
      squares_(RowsOf(model) * triangle_) {}

int64_t QueryStatistics::SumBytes(const ModelSpec& model) {
  const int64_t of_head = model.head_dim + BandsOf(model) + TriangleSize(model.head_dim);
  return RowsOf(model) * of_head * static_cast<int64_t>(sizeof(double));
}

int64_t QueryStatistics::ArtifactBytes(const ModelSpec& model) {
  const int64_t dims = model.head_dim;
  const int64_t of_head = dims + dims * dims + 3 * BandsOf(model);
  return RowsOf(model) * of_head * static_cast<int64_t>(sizeof(float));
}

QueryStatistics::Sums QueryStatistics::SumsOf(int64_t row) {
  return {means_.data() + row * head_dim_, centres_.data() + row * bands_,
          squares_.data() + row * triangle_};
}

void QueryStatistics::Add(const QueryBatch& batch) {
  const float* queries = batch.queries.data();
  for (const int32_t layer : batch.layers) {
    tokens_[layer] += batch.tokens;
    for (int64_t head = 0; head < q_heads_; ++head) {
      AddRow(queries, batch.tokens, SumsOf(layer * q_heads_ + head));
      queries += batch.tokens * head_dim_;
    }
  }
}

void QueryStatistics::AddRow(const float* queries, int64_t tokens, Sums sums) const {
  for (int64_t token = 0; token < tokens; ++token) {
    const float* query = queries + token * head_dim_;
    for (int64_t d = 0; d < head_dim_; ++d) sums.mean[d] += query[d];
    AddCentres(query, sums.centres);
  }
  for (int64_t token = 0; token < tokens; token += kNearTokens) {
    AddSquares(queries + token * head_dim_, std::min(kNearTokens, tokens - token), sums.squares);
  }
}

void QueryStatistics::AddCentres(const float* query, double* centres) const {
  for (int64_t band = 0; band < bands_; ++band) {
    const auto [first, second] = DimsOf(layout_, band, bands_);
    const double x = query[first], y = query[second];
    centres[band] += std::sqrt(x * x + y * y);
  }
}

// Rows outside, tokens inside: a row of sums stays in registers and near caches for all tokens.
void QueryStatistics::AddSquares(const float* queries, int64_t tokens, double* squares) const {
  for (int64_t row = 0; row < head_dim_; ++row) {
    double* sums = squares + RowStart(row, head_dim_);
    for (int64_t column = row - row % kGroup; column < head_dim_; column += kGroup) {
      double group[kGroup];
      for (int64_t i = 0; i < kGroup; ++i) group[i] = sums[column + i];
      for (int64_t token = 0; token < tokens; ++token) {
        const float* query = queries + token * head_dim_;
        const double factor = query[row];
        for (int64_t i = 0; i < kGroup; ++i) group[i] += factor * query[column + i];
      }
      for (int64_t i = 0; i < kGroup; ++i) sums[column + i] = group[i];
    }
  }
}

int64_t QueryStatistics::LeastTokens(std::span<const int32_t> layers) const {
  if (layers.empty()) return *std::min_element(tokens_.begin(), tokens_.end());
  int64_t least = tokens_[layers[0]];
  for (const int32_t layer : layers) least = std::min(least, tokens_[layer]);
  return least;
}

double QueryStatistics::CountOf(int64_t row) const {
  return static_cast<double>(std::max<int64_t>(1, tokens_[row / q_heads_]));
}

double QueryStatistics::MeanOf(int64_t row, int64_t d) const {
  return means_[row * head_dim_ + d] / CountOf(row);
}

QueryCentres QueryStatistics::Centres() const {
  QueryCentres centres;
  centres.num_layers = static_cast<int32_t>(layers_);
  centres.q_heads = static_cast<int32_t>(q_heads_);
  centres.bands = static_cast<int32_t>(bands_);
  for (int64_t row = 0; row < layers_ * q_heads_; ++row) {
    const double count = CountOf(row);
    for (int64_t band = 0; band < bands_; ++band) {
      const auto [first, second] = DimsOf(layout_, band, bands_);
      const double re = MeanOf(row, first), im = MeanOf(row, second);
      centres.mean_re.push_back(static_cast<float>(re));
      centres.mean_im.push_back(static_cast<float>(im));
      // Never below |mean|, which rounding of long sums could feign.
      const double magnitude = centres_[row * bands_ + band] / count;
      centres.abs_mean.push_back(
          static_cast<float>(std::max(magnitude, std::sqrt(re * re + im * im))));
    }
  }
  return centres;
}

QueryMoments QueryStatistics::Moments() const {
  QueryMoments moments;
  moments.num_layers = static_cast<int32_t>(layers_);
  moments.q_heads = static_cast<int32_t>(q_heads_);
  moments.head_dim = static_cast<int32_t>(head_dim_);
  const int64_t rows = layers_ * q_heads_, dims = head_dim_;
  moments.mean.resize(rows * dims);
  moments.cov.resize(rows * dims * dims);
  for (int64_t row = 0; row < rows; ++row) {
    const double count = CountOf(row);
    float* cov = moments.cov.data() + row * dims * dims;
    for (int64_t i = 0; i < dims; ++i) {
      const double mean = MeanOf(row, i);
      moments.mean[row * dims + i] = static_cast<float>(mean);
      const double* squares = Squares(row) + RowStart(i, dims);
      for (int64_t j = i; j < dims; ++j) {
        double covariance = squares[j] / count - mean * MeanOf(row, j);
        if (i == j) covariance = std::max(0.0, covariance);
        cov[i * dims + j] = cov[j * dims + i] = static_cast<float>(covariance);
      }
    }
  }
  return moments;
}

std::vector<float> QueryStatistics::MeanErrors() const {
  std::vector<float> errors(layers_ * q_heads_, 1.0f);
  for (int64_t row = 0; row < layers_ * q_heads_; ++row) {
    const int64_t tokens = tokens_[row / q_heads_];
    if (tokens < 2) continue;
    double energy = 0, of_mean = 0;
    for (int64_t d = 0; d < head_dim_; ++d) {
      energy += Squares(row)[RowStart(d, head_dim_) + d] / static_cast<double>(tokens);
      of_mean += MeanOf(row, d) * MeanOf(row, d);
    }
    const double spread = std::max(0.0, energy - of_mean);
    // Of nothing but zeros the mean is known.
    const double ratio = energy > 0 ? spread / energy / static_cast<double>(tokens - 1) : 0.0;
    errors[row] = static_cast<float>(std::min(1.0, std::sqrt(ratio)));
  }
  return errors;
}

}  // namespace kvern::pipeline
