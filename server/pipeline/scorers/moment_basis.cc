// Per band a mean of rotations is one complex number, so averaged moments are a map of bands.
#include "server/pipeline/scorers/moment_basis.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <list>
#include <mutex>
#include <string>
#include <utility>

#include "Eigen/Eigenvalues"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/math.h"
#include "kernels/base/status_macros.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kCacheBytes = int64_t{128} << 20;

std::complex<double> Turn(double angle) {
  double sine, cosine;
  SinCos(angle, &sine, &cosine);
  return {cosine, sine};
}

// Multiplies every band of a head vector, taken as a complex number, by that band's factor.
struct BandMap {
  RopeLayout layout;
  std::vector<std::complex<double>> factors;  // [bands]

  std::pair<int64_t, int64_t> Dims(int64_t band) const {
    const int64_t bands = static_cast<int64_t>(factors.size());
    if (layout == RopeLayout::kHalf) return {band, band + bands};
    return {2 * band, 2 * band + 1};
  }
  void Apply(double* vector, int64_t stride) const {
    for (int64_t band = 0; band < static_cast<int64_t>(factors.size()); ++band) {
      const auto [first, second] = Dims(band);
      double& x = vector[first * stride];
      double& y = vector[second * stride];
      const double re = factors[band].real(), im = factors[band].imag();
      const double turned = re * x - im * y;
      y = re * y + im * x;
      x = turned;
    }
  }
  // M C M': rows, then columns.
  void ApplyToBothSides(double* matrix, int64_t n) const {
    for (int64_t row = 0; row < n; ++row) Apply(matrix + row * n, 1);
    for (int64_t column = 0; column < n; ++column) Apply(matrix + column, n);
  }
};

BandMap RotationBy(const RopeSpec& rope, int64_t position) {
  BandMap map{rope.layout, {}};
  for (const float frequency : rope.inv_freq) {
    map.factors.push_back(Turn(static_cast<double>(position) * frequency));
  }
  return map;
}

// Queries carry the attention scaling as keys do: it belongs into the map of the moments.
BandMap MeanRotation(const RopeSpec& rope, int64_t future) {
  BandMap map{rope.layout, {}};
  for (const float frequency : rope.inv_freq) {
    std::complex<double> sum = 0;
    for (int64_t position = 0; position < future; ++position) {
      sum += Turn(static_cast<double>(position) * frequency);
    }
    map.factors.push_back(rope.attention_scaling / static_cast<double>(future) * sum);
  }
  return map;
}

absl::Status CheckMoments(const QueryMoments& moments, const SequenceInput& sequence) {
  const ModelSpec& model = *sequence.model;
  if (moments.q_heads != model.q_heads || moments.head_dim != model.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("query_moments: got ", moments.q_heads, " q_heads of head_dim ",
                     moments.head_dim, ", want ", model.q_heads, " of ", model.head_dim));
  }
  for (const int32_t layer : sequence.layer_indices) {
    if (layer >= moments.num_layers) {
      return absl::InvalidArgumentError(
          absl::StrCat("query_moments: got ", moments.num_layers, " layers, want layer ", layer));
    }
  }
  return absl::OkStatus();
}

// Splits a covariance [n, n] into `rank` scaled eigenvectors and what is left of its bands.
class LowRank {
 public:
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  // False when the eigenvalues do not converge.
  static bool Split(Matrix covariance, const BandMap& bands, int64_t row, MomentBasis* basis) {
    const Eigen::SelfAdjointEigenSolver<Matrix> solver(covariance);
    if (solver.info() != Eigen::Success) return false;
    const int64_t n = basis->head_dim;
    for (int64_t j = 0; j < basis->rank; ++j) {
      const int64_t column = n - 1 - j;  // eigenvalues ascend
      // Storage at f16 can push the smallest eigenvalues below 0.
      const double root = std::sqrt(std::max(0.0, solver.eigenvalues()[column]));
      const Eigen::VectorXd scaled = root * solver.eigenvectors().col(column);
      std::copy_n(scaled.data(), n, basis->factors.data() + (row * basis->rank + j) * n);
      covariance -= scaled * scaled.transpose();
    }
    const int64_t band_count = static_cast<int64_t>(bands.factors.size());
    for (int64_t d = 0; d < n; ++d) basis->rest[row * n + d] = covariance(d, d);
    for (int64_t band = 0; band < band_count; ++band) {
      const auto [first, second] = bands.Dims(band);
      basis->rest_in_band[row * band_count + band] = covariance(first, second);
    }
    return true;
  }
};

// Which (layer, query head) of the moments becomes which row of the basis.
struct RowPair {
  int64_t source;
  int64_t row;
};

absl::Status FillRow(const QueryMoments& moments, const BandMap& map, RowPair at,
                     MomentBasis* basis) {
  const auto [source, row] = at;
  const int64_t n = basis->head_dim;
  double* mean = basis->mean.data() + row * n;
  std::copy_n(moments.mean.data() + source * n, n, mean);
  map.Apply(mean, 1);

  LowRank::Matrix covariance(n, n);
  std::copy_n(moments.cov.data() + source * n * n, n * n, covariance.data());
  covariance = (0.5 * (covariance + covariance.transpose())).eval();  // the form sees no more of it
  map.ApplyToBothSides(covariance.data(), n);
  if (!std::all_of(mean, mean + n, [](double x) { return std::isfinite(x); }) ||
      !covariance.allFinite()) {
    return absl::InvalidArgumentError(
        absl::StrCat("query_moments: got a value that is not finite in row ", source,
                     " (layer * q_heads + q_head), want none"));
  }
  if (basis->full) {
    std::copy_n(covariance.data(), n * n, basis->factors.data() + row * n * n);
  } else if (!LowRank::Split(covariance, map, row, basis)) {
    return absl::InvalidArgumentError(
        absl::StrCat("query_moments: got a covariance without eigenvalues in row ", source,
                     ", want a symmetric matrix"));
  }
  return absl::OkStatus();
}

absl::StatusOr<MomentBasis> Build(const SequenceInput& sequence, const MomentOptions& options) {
  const ModelSpec& model = *sequence.model;
  MomentBasis basis;
  basis.rows = sequence.Layers() * model.q_heads;
  basis.head_dim = model.head_dim;
  basis.full = options.rank == 0;
  basis.rank = basis.full ? basis.head_dim : std::min(options.rank, basis.head_dim);
  basis.mean.resize(basis.rows * basis.head_dim);
  basis.factors.resize(basis.rows * basis.rank * basis.head_dim);
  if (!basis.full) {
    basis.rest.resize(basis.rows * basis.head_dim);
    basis.rest_in_band.resize(basis.rows * model.rope.Bands());
  }
  const BandMap map = MeanRotation(model.rope, options.future);
  for (int64_t row = 0; row < basis.rows; ++row) {
    const int64_t source =
        int64_t{sequence.layer_indices[row / model.q_heads]} * model.q_heads + row % model.q_heads;
    KVERN_RETURN_IF_ERROR(FillRow(*sequence.calibrations->moments, map, {source, row}, &basis));
  }
  return basis;
}

void AppendBytes(const void* data, size_t size, std::string* out) {
  out->append(static_cast<const char*>(data), size);
}

// Everything the basis depends on.
std::string KeyOf(const SequenceInput& sequence, const MomentOptions& options) {
  const RopeSpec& rope = sequence.model->rope;
  std::string key = absl::StrCat(sequence.calibrations->cache_key, "|", options.rank, "|",
                                 options.future, "|", static_cast<int>(rope.layout), "|");
  AppendBytes(&rope.attention_scaling, sizeof(rope.attention_scaling), &key);
  AppendBytes(rope.inv_freq.data(), rope.inv_freq.size() * sizeof(float), &key);
  absl::StrAppend(&key, "|");
  AppendBytes(sequence.layer_indices.data(), sequence.layer_indices.size() * sizeof(int32_t), &key);
  return key;
}

// Bounded by bytes, least recently used out first.
class BasisCache {
 public:
  using Basis = std::shared_ptr<const MomentBasis>;

  Basis Find(const std::string& key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return nullptr;
    recent_.splice(recent_.begin(), recent_, found->second);
    return found->second->second;
  }
  void Insert(const std::string& key, Basis basis) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (basis->Bytes() > kCacheBytes || by_key_.contains(key)) return;
    bytes_ += basis->Bytes();
    recent_.emplace_front(key, std::move(basis));
    by_key_[key] = recent_.begin();
    while (bytes_ > kCacheBytes) {
      bytes_ -= recent_.back().second->Bytes();
      by_key_.erase(recent_.back().first);
      recent_.pop_back();
    }
  }

 private:
  using Entries = std::list<std::pair<std::string, Basis>>;  // most recently used first
  std::mutex mutex_;
  Entries recent_;
  absl::flat_hash_map<std::string, Entries::iterator> by_key_;
  int64_t bytes_ = 0;
};

BasisCache& Cache() {
  static BasisCache& cache = *new BasisCache;  // never destroyed: workers may outlive main
  return cache;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const MomentBasis>> MomentBasisOf(const SequenceInput& sequence,
                                                                 const MomentOptions& options) {
  KVERN_RETURN_IF_ERROR(CheckMoments(*sequence.calibrations->moments, sequence));
  const bool named = !sequence.calibrations->cache_key.empty();
  const std::string key = named ? KeyOf(sequence, options) : std::string();
  if (named) {
    if (auto found = Cache().Find(key)) return found;
  }
  // Built outside the lock: two callers may do it at once, and get the same numbers.
  KVERN_ASSIGN_OR_RETURN(MomentBasis built, Build(sequence, options));
  auto basis = std::make_shared<const MomentBasis>(std::move(built));
  if (named) Cache().Insert(key, basis);
  return basis;
}

MomentBasis TurnedTo(const MomentBasis& basis, const RopeSpec& rope, int64_t logical_tokens) {
  const BandMap turn = RotationBy(rope, logical_tokens);
  const int64_t n = basis.head_dim, bands = rope.Bands();
  MomentBasis turned = basis;
  for (int64_t row = 0; row < basis.rows; ++row) {
    turn.Apply(turned.mean.data() + row * n, 1);
    double* factors = turned.factors.data() + row * basis.rank * n;
    if (basis.full) {
      turn.ApplyToBothSides(factors, n);
      continue;
    }
    for (int64_t j = 0; j < basis.rank; ++j) turn.Apply(factors + j * n, 1);
    for (int64_t band = 0; band < bands; ++band) {
      const auto [first, second] = turn.Dims(band);
      const double c = turn.factors[band].real(), s = turn.factors[band].imag();
      double& a = turned.rest[row * n + first];
      double& b = turned.rest[row * n + second];
      const double between = 2 * s * c * basis.rest_in_band[row * bands + band];
      const double turned_a = c * c * a + s * s * b - between;
      b = s * s * a + c * c * b + between;
      a = turned_a;
    }
  }
  // The elements between dims turn too, but nobody reads them after this.
  turned.rest_in_band.clear();
  return turned;
}

}  // namespace kvern::pipeline
