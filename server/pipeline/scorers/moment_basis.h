// Query moments as expected attention needs them: rotated to the mean of the future positions and,
// for a low rank, cut to the top eigenpairs of the covariance plus the diagonal of the rest
// (quality.md 8).
#ifndef KVERN_SERVER_PIPELINE_SCORERS_MOMENT_BASIS_H_
#define KVERN_SERVER_PIPELINE_SCORERS_MOMENT_BASIS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::pipeline {

struct MomentOptions {
  int64_t rank = 0;      // 0: the whole covariance
  int64_t future = 512;  // positions averaged over
};

// Averaged over positions 0..future-1. The average over T..T+future-1 is this one turned by the
// orthogonal rotation of T, which leaves eigenvalues alone: so the costly part is kept per
// calibration, and only turned per request.
struct MomentBasis {
  int64_t rows = 0;  // layers * q_heads
  int64_t head_dim = 0;
  int64_t rank = 0;  // rows of `factors` per head; head_dim when full
  bool full = false;
  std::vector<double> mean;     // [rows, head_dim]
  std::vector<double> factors;  // [rows, rank, head_dim]: sqrt(eigenvalue) * eigenvector, or the
                                // covariance itself when full
  std::vector<double> rest;     // [rows, head_dim]: diagonal of the remainder; empty when full
  std::vector<double> rest_in_band;  // [rows, bands]: its element between the two dims of a band
  int64_t Bytes() const {
    return static_cast<int64_t>((mean.size() + factors.size() + rest.size() + rest_in_band.size()) *
                                sizeof(double));
  }
};

// Thread-safe. A calibration with a cache key is kept, least recently used out first; the answer is
// a function of the arguments alone. Errors: InvalidArgument for moments that do not fit the model
// or are not finite.
absl::StatusOr<std::shared_ptr<const MomentBasis>> MomentBasisOf(const SequenceInput& sequence,
                                                                 const MomentOptions& options);

// The same moments about positions T..T+future-1, T = logical_tokens.
MomentBasis TurnedTo(const MomentBasis& basis, const RopeSpec& rope, int64_t logical_tokens);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SCORERS_MOMENT_BASIS_H_
