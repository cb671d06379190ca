// Tables in use are never changed: a longer one replaces them.
#include "server/pipeline/rope_angles.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "kernels/base/math.h"

namespace kvern::pipeline {
namespace {

std::atomic<int64_t> kept_bytes = 0;

}  // namespace

void AngleRows::Append(std::span<const float> inv_freq, int64_t position) {
  for (const float frequency : inv_freq) {
    double sin, cos;
    SinCos(static_cast<double>(position) * frequency, &sin, &cos);
    cosine.push_back(static_cast<float>(cos));
    sine.push_back(static_cast<float>(sin));
  }
}

RopeAngles::~RopeAngles() { kept_bytes -= bytes_; }

int64_t RopeAngles::KeptBytes() { return kept_bytes; }

bool RopeAngles::Keep(int64_t bytes) {
  const int64_t more = bytes - bytes_;
  if (kept_bytes.fetch_add(more) + more > kMaxKeptBytes) {
    kept_bytes -= more;
    return false;
  }
  bytes_ = bytes;
  return true;
}

std::shared_ptr<const AngleRows> RopeAngles::First(std::span<const float> inv_freq,
                                                   int64_t positions) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (positions <= positions_) return rows_;
  // A sequence grows by a token at a time: doubled, all its tables together cost twice the last.
  int64_t wanted = std::max(positions, std::min(2 * positions_, kMaxPositions));
  const bool kept = Keep(wanted * static_cast<int64_t>(2 * sizeof(float) * inv_freq.size()));
  if (!kept) wanted = positions;
  auto longer =
      rows_ == nullptr ? std::make_shared<AngleRows>() : std::make_shared<AngleRows>(*rows_);
  longer->cosine.reserve(wanted * inv_freq.size());
  longer->sine.reserve(wanted * inv_freq.size());
  for (int64_t position = positions_; position < wanted; ++position) {
    longer->Append(inv_freq, position);
  }
  if (!kept) return longer;
  positions_ = wanted;
  rows_ = std::move(longer);
  return rows_;
}

}  // namespace kvern::pipeline
