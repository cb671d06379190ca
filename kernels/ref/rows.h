// How ref reads a row of keys or values, and the order in which it adds over tokens.
#ifndef KVERN_KERNELS_REF_ROWS_H_
#define KVERN_KERNELS_REF_ROWS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/backend.h"
#include "kernels/base/band_rotation.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/lanes.h"

namespace kvern::ref {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline absl::Status Check(const StopCheck* stop) {
  return stop == nullptr ? absl::OkStatus() : stop->Check();
}
// Asked per token: the check runs at the start of each tile.
inline absl::Status CheckAtTile(const StopCheck* stop, int64_t token) {
  return token % kTileTokens == 0 ? Check(stop) : absl::OkStatus();
}

// One head of one layer, and the check to ask on the way.
struct HeadProblem {
  const StopCheck* stop;
  int64_t layer;
  int64_t head;
};

// Tokens of one head that a score row has room for.
inline int64_t TokensOf(const KvRef& ref, int64_t head, int64_t row_tokens) {
  return std::min(ref.Length(head), row_tokens);
}

// [head_dim] of one token, widened exactly.
inline void LoadRow(const KvRef& ref, int64_t head, int64_t token, float* row) {
  LoadKvRow(ref, ref.Address(head, token), row);
}

inline bool AllFinite(const float* row, int64_t n) {
  return std::all_of(row, row + n, [](float x) { return std::isfinite(x); });
}

// |row|_2: one f32 lane sum.
inline float Norm(const float* row, int64_t n) { return std::sqrt(LaneDot(row, row, n)); }

// The key before its rotation.
inline void Unrotate(const RotationTable& table, int64_t table_row, float* row) {
  UnrotateRow(RowOf(table, table_row), row);
}

// The one rounding of a score; what is not finite has no score.
inline float ScoreFrom(double value) {
  const float score = static_cast<float>(value);
  return std::isfinite(score) ? score : std::numeric_limits<float>::quiet_NaN();
}
inline float NoScore() { return std::numeric_limits<float>::quiet_NaN(); }

// A sum over tokens in the order of ruling 6: 16 lanes inside each 256-token tile, tiles in order.
// Tokens come ascending; any may be left out.
class TokenSum {
 public:
  void Add(int64_t token, double value) {
    if (token / kTileTokens != tile_) CloseTile(token / kTileTokens);
    lanes_[token % kLanes] += value;
  }
  // Adds a * b in one rounding.
  void AddProduct(int64_t token, double a, double b) {
    if (token / kTileTokens != tile_) CloseTile(token / kTileTokens);
    lanes_[token % kLanes] = std::fma(a, b, lanes_[token % kLanes]);
  }
  double Total() {
    CloseTile(tile_);
    return total_;
  }

 private:
  void CloseTile(int64_t next) {
    total_ += TreeSum(lanes_);
    std::fill(lanes_, lanes_ + kLanes, 0.0);
    tile_ = next;
  }

  int64_t tile_ = 0;
  double lanes_[kLanes] = {};
  double total_ = 0;
};

// Mean and biased standard deviation of the finite values whose mask is set; both 0 without any.
struct Spread {
  double mean = 0;
  double deviation = 0;
};
inline Spread SpreadOf(const std::vector<double>& values, const uint8_t* mask) {
  const auto counts = [&](size_t token) {
    return mask[token] != 0 && std::isfinite(values[token]);
  };
  Spread spread;
  TokenSum sum;
  int64_t count = 0;
  for (size_t token = 0; token < values.size(); ++token) {
    if (!counts(token)) continue;
    sum.Add(token, values[token]);
    ++count;
  }
  if (count == 0) return spread;
  spread.mean = sum.Total() / static_cast<double>(count);
  TokenSum squares;
  for (size_t token = 0; token < values.size(); ++token) {
    if (!counts(token)) continue;
    const double distance = values[token] - spread.mean;
    squares.AddProduct(token, distance, distance);
  }
  spread.deviation = std::sqrt(squares.Total() / static_cast<double>(count));
  return spread;
}
// 0 for a row without spread (ruling 7); what is not finite stays so.
inline double Standardise(const Spread& spread, double value) {
  if (!std::isfinite(value)) return std::numeric_limits<double>::quiet_NaN();
  constexpr double kSmallestDeviation = 1e-6;
  return spread.deviation < kSmallestDeviation ? 0.0 : (value - spread.mean) / spread.deviation;
}

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_ROWS_H_
