// Geometry of a model's cache and the calibration that stages may use.
#ifndef KVERN_SERVER_PIPELINE_MODEL_H_
#define KVERN_SERVER_PIPELINE_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/rotation.h"

namespace kvern::pipeline {

class RopeAngles;

struct RopeSpec {
  RopeLayout layout = RopeLayout::kHalf;
  std::vector<float> inv_freq;  // [rotary_dim / 2], the live ones; empty: unknown
  double attention_scaling = 1.0;
  std::shared_ptr<RopeAngles> angles;  // of a registered model; null: made anew for each table
  int32_t Bands() const { return static_cast<int32_t>(inv_freq.size()); }
};

struct ModelSpec {
  int32_t num_layers = 0;
  int32_t q_heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  RopeSpec rope;
  std::string display_name;
};

// `kvern-calibration/1`: query statistics before RoPE (retention.md 2), complex per band.
struct QueryCentres {
  int32_t num_layers = 0;
  int32_t q_heads = 0;
  int32_t bands = 0;
  std::vector<float> mean_re;            // [num_layers, q_heads, bands]
  std::vector<float> mean_im;            // same
  std::vector<float> abs_mean;           // same, >= |mean|
  std::vector<float> layer_sensitivity;  // [num_layers], or empty
};

// `kvern-query-moments/1`: mean and population covariance of queries before RoPE.
struct QueryMoments {
  int32_t num_layers = 0;
  int32_t q_heads = 0;
  int32_t head_dim = 0;
  std::vector<float> mean;  // [num_layers, q_heads, head_dim]
  std::vector<float> cov;   // [num_layers, q_heads, head_dim, head_dim]
};

// What a request's calibrations amount to; null members are absent.
struct Calibrations {
  std::shared_ptr<const QueryCentres> centres;
  std::shared_ptr<const QueryMoments> moments;
  std::string cache_key;  // names of the artifacts: keys derived tables (averaged rotations)
  // Counted live where the artifacts had none of the kind.
  bool observed_centres = false;
  bool observed_moments = false;
  int64_t observed_tokens = 0;  // in the layer of the sequence with fewest
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_MODEL_H_
