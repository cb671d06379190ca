// Queries of a head cluster around a fixed centre before RoPE, so the centre rotated to future
// positions scores the keys as they lie in the cache (retention.md 3.1, 3.2).
#include <cmath>
#include <complex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/math.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

std::complex<double> Turn(double angle) {
  double sine, cosine;
  SinCos(angle, &sine, &cosine);
  return {cosine, sine};
}

// What the backend op reads: the centres turned to this round's position.
struct TurnedCentres {
  std::vector<float> u;  // [layers, q_heads, columns, 2 * bands]
  std::vector<float> w;  // [layers, q_heads, bands]
};

absl::Status CheckCentres(const QueryCentres& centres, const SequenceInput& sequence) {
  const ModelSpec& model = *sequence.model;
  if (centres.q_heads != model.q_heads || centres.bands != model.rope.Bands()) {
    return absl::InvalidArgumentError(absl::StrCat("calibration: got ", centres.q_heads,
                                                   " q_heads and ", centres.bands, " bands, want ",
                                                   model.q_heads, " and ", model.rope.Bands()));
  }
  for (const int32_t layer : sequence.layer_indices) {
    if (layer >= centres.num_layers) {
      return absl::InvalidArgumentError(
          absl::StrCat("calibration: got ", centres.num_layers, " layers, want layer ", layer));
    }
  }
  return absl::OkStatus();
}

class TriAttentionScorer final : public Scorer {
 public:
  explicit TriAttentionScorer(const StageParams& params)
      : columns_are_offsets_(params.Enum("offsets") == "max"),
        zscore_(params.Enum("normalize") == "zscore"),
        group_(params.Enum("group") == "max" ? GroupReduce::kMax : GroupReduce::kMean) {
    for (int64_t offset = 1; offset <= params.Int("max_offset"); offset *= 2) {
      offsets_.push_back(offset);
    }
  }

  uint16_t Inputs() const override { return kNeedsCentres | kNeedsRope; }

  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    std::vector<TurnedCentres> turned;
    turned.reserve(cohort.size());
    ScratchVector<TriAttentionArgs> args;
    for (const ScoreInput& input : cohort) {
      const SequenceInput& sequence = *input.sequence;
      const RopeSpec& rope = sequence.model->rope;
      KVERN_RETURN_IF_ERROR(CheckCentres(*sequence.calibrations->centres, sequence));
      const TurnedCentres& centres = turned.emplace_back(TurnTo(sequence));
      const int64_t layers = sequence.Layers(), q_heads = sequence.model->q_heads;
      args.push_back({.keys = sequence.keys,
                      .layout = rope.layout,
                      .bands = rope.Bands(),
                      .q_heads = sequence.model->q_heads,
                      .columns = static_cast<int32_t>(Columns()),
                      .u = DenseView(centres.u.data(), layers, q_heads,
                                     static_cast<int64_t>(Columns()), int64_t{2} * rope.Bands()),
                      .w = DenseView(centres.w.data(), layers, q_heads, int64_t{rope.Bands()}),
                      .candidates = input.candidates,
                      .zscore = zscore_,
                      .group = group_,
                      .scores = input.scores});
    }
    return backend.TriAttention(args);
  }

 private:
  size_t Columns() const { return columns_are_offsets_ ? offsets_.size() : 1; }

  // e^{i (t + o) w} per column, or its mean over the offsets; f64, since an f32 phase at a position
  // of a million is off by hundredths. [columns, bands]
  std::vector<std::complex<double>> Phases(const RopeSpec& rope, int64_t logical_tokens) const {
    std::vector<std::complex<double>> phases(Columns() * rope.inv_freq.size());
    for (size_t band = 0; band < rope.inv_freq.size(); ++band) {
      const double frequency = rope.inv_freq[band];
      const std::complex<double> now = Turn(static_cast<double>(logical_tokens) * frequency);
      std::complex<double> sum = 0;
      for (size_t i = 0; i < offsets_.size(); ++i) {
        const std::complex<double> ahead = Turn(static_cast<double>(offsets_[i]) * frequency);
        if (columns_are_offsets_) phases[i * rope.inv_freq.size() + band] = now * ahead;
        sum += ahead;
      }
      if (!columns_are_offsets_) phases[band] = now * (sum / static_cast<double>(offsets_.size()));
    }
    return phases;
  }

  TurnedCentres TurnTo(const SequenceInput& sequence) const {
    const QueryCentres& centres = *sequence.calibrations->centres;
    const RopeSpec& rope = sequence.model->rope;
    const int64_t bands = rope.Bands(), q_heads = centres.q_heads;
    const int64_t columns = static_cast<int64_t>(Columns());
    const std::vector<std::complex<double>> phases = Phases(rope, sequence.logical_tokens);
    // A cached key carries the attention scaling once already: scores come out times sigma, the
    // same for every token.
    const double scale = rope.attention_scaling * rope.attention_scaling;
    const bool half = rope.layout == RopeLayout::kHalf;

    TurnedCentres turned;
    turned.u.resize(sequence.Layers() * q_heads * columns * 2 * bands);
    turned.w.resize(sequence.Layers() * q_heads * bands);
    for (int64_t row = 0; row < sequence.Layers() * q_heads; ++row) {
      const int64_t source =
          (sequence.layer_indices[row / q_heads] * q_heads + row % q_heads) * bands;
      for (int64_t band = 0; band < bands; ++band) {
        const std::complex<double> centre(centres.mean_re[source + band],
                                          centres.mean_im[source + band]);
        turned.w[row * bands + band] = static_cast<float>(
            scale * (centres.abs_mean[source + band] - std::sqrt(std::norm(centre))));
        const int64_t real = half ? band : 2 * band, imaginary = half ? band + bands : 2 * band + 1;
        for (int64_t column = 0; column < columns; ++column) {
          const std::complex<double> u = scale * centre * phases[column * bands + band];
          float* out = turned.u.data() + (row * columns + column) * 2 * bands;
          out[real] = static_cast<float>(u.real());
          out[imaginary] = static_cast<float>(u.imag());
        }
      }
    }
    return turned;
  }

  std::vector<int64_t> offsets_;  // 1, 2, 4, ...
  const bool columns_are_offsets_;
  const bool zscore_;
  const GroupReduce group_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeTriAttentionScorer(const StageParams& params) {
  return std::make_unique<TriAttentionScorer>(params);
}

}  // namespace kvern::pipeline
