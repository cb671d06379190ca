// Running statistics of a model's queries before RoPE: what a calibration file holds, counted live.
#ifndef KVERN_SERVER_PIPELINE_QUERY_STATISTICS_H_
#define KVERN_SERVER_PIPELINE_QUERY_STATISTICS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "server/pipeline/model.h"

namespace kvern::pipeline {

// Queries before RoPE of some of a model's layers.
struct QueryBatch {
  std::vector<int32_t> layers;  // in the model, ascending
  int64_t tokens = 0;
  std::vector<float> queries;  // [layers, q_heads, tokens, head_dim], finite, at most 2^30
};

// Takes the rotation of `positions` [tokens], and RoPE's factor with it, off the queries. The
// model's RoPE is known.
void TurnBack(const ModelSpec& model, const std::vector<int32_t>& positions, QueryBatch* batch);

// Not thread-safe. Sums are f64 in the order of Add and of the tokens in it: products of two f32
// are exact there, so the same queries in the same order give the same bits anywhere.
class QueryStatistics {
 public:
  // A head_dim that is a multiple of 8.
  explicit QueryStatistics(const ModelSpec& model);

  // Of the sums, and of what Centres and Moments make of them.
  static int64_t SumBytes(const ModelSpec& model);
  static int64_t ArtifactBytes(const ModelSpec& model);

  void Add(const QueryBatch& batch);

  const std::vector<int64_t>& LayerTokens() const { return tokens_; }  // [num_layers]
  // Over these layers; none: over all.
  int64_t LeastTokens(std::span<const int32_t> layers = {}) const;
  // Of layers without a token: zeros.
  QueryCentres Centres() const;
  QueryMoments Moments() const;
  // Standard error of the mean query over the root mean square of the queries, tokens taken as
  // independent, in [0, 1]: [num_layers, q_heads]; 1 below two tokens.
  std::vector<float> MeanErrors() const;

 private:
  // One (layer, query head); pointers into the vectors below.
  struct Sums {
    double* mean;
    double* centres;
    double* squares;
  };
  Sums SumsOf(int64_t row);
  void AddRow(const float* queries, int64_t tokens, Sums sums) const;
  void AddCentres(const float* query, double* centres) const;
  void AddSquares(const float* queries, int64_t tokens, double* squares) const;
  const double* Squares(int64_t row) const { return squares_.data() + row * triangle_; }
  double MeanOf(int64_t row, int64_t d) const;
  double CountOf(int64_t row) const;  // at least 1, to divide by

  const int64_t layers_, q_heads_, head_dim_, bands_;
  const RopeLayout layout_;
  const int64_t triangle_;       // elements of one head's second moments
  std::vector<int64_t> tokens_;  // [num_layers]
  std::vector<double> means_;    // [num_layers, q_heads, head_dim]: sums of elements
  std::vector<double> centres_;  // [num_layers, q_heads, bands]: sums of magnitudes
  std::vector<double> squares_;  // [num_layers, q_heads, triangle]: sums of products
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_QUERY_STATISTICS_H_
