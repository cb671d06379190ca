// Angles of positions 0, 1, 2, ... of one model, made once and shared by its calls.
#ifndef KVERN_SERVER_PIPELINE_ROPE_ANGLES_H_
#define KVERN_SERVER_PIPELINE_ROPE_ANGLES_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace kvern::pipeline {

// cos and sin of position * inv_freq: f64 phases, rounded once to f32.
struct AngleRows {
  std::vector<float> cosine;  // [positions, bands]
  std::vector<float> sine;    // [positions, bands]
  void Append(std::span<const float> inv_freq, int64_t position);
};

// Thread-safe. Two million sines and cosines take as long as scoring the keys they turn, so a model
// keeps them as far as its longest sequence went: 512 bytes per position at 64 bands.
class RopeAngles {
 public:
  static constexpr int64_t kMaxPositions = 131'072;
  static constexpr int64_t kMaxKeptBytes = int64_t{256} << 20;  // of all models together

  RopeAngles() = default;
  ~RopeAngles();
  RopeAngles(const RopeAngles&) = delete;
  RopeAngles& operator=(const RopeAngles&) = delete;

  // Rows of positions 0..positions-1 at least. `inv_freq` is the same in every call.
  std::shared_ptr<const AngleRows> First(std::span<const float> inv_freq, int64_t positions);

  static int64_t KeptBytes();

 private:
  bool Keep(int64_t bytes);

  std::mutex mutex_;
  int64_t bytes_ = 0;
  std::shared_ptr<const AngleRows> rows_;
  int64_t positions_ = 0;
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_ROPE_ANGLES_H_
