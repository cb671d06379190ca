// Random but valid requests for tests that compare two ways of serving the same one (ruling 24).
#ifndef KVERN_TESTS_SUPPORT_RANDOM_CASE_H_
#define KVERN_TESTS_SUPPORT_RANDOM_CASE_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/dtype.h"
#include "server/pipeline/model.h"
#include "server/pipeline/policy.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::support {

// One seed, one stream of numbers.
class Rng {
 public:
  explicit Rng(uint64_t seed) : engine_(seed) {}

  // Within [low, high].
  int64_t Int(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return Int(1, 100) <= percent; }
  template <class T>
  T Pick(std::initializer_list<T> from) {
    return from.begin()[Int(0, static_cast<int64_t>(from.size()) - 1)];
  }
  template <class T>
  void Shuffle(std::vector<T>* values) {
    for (size_t i = values->size(); i > 1; --i) {
      std::swap((*values)[i - 1], (*values)[Int(0, static_cast<int64_t>(i) - 1)]);
    }
  }
  // `count` standard normal values, taken from a table: making them must not cost more than the
  // test.
  std::vector<float> Normals(int64_t count);

 private:
  std::mt19937_64 engine_;
};

// A model and the calibrations of it. The same index, the same geometry.
struct Geometry {
  int64_t index = 0;
  std::string id;  // of the model
  pipeline::ModelSpec model;
  bool has_moments = false;  // false: they would be large, no case needs them
};
Geometry MakeGeometry(int64_t index);
// Artifacts: `kvern-calibration/1` and `kvern-query-moments/1`.
std::string CentresFile(const Geometry& geometry);
std::string MomentsFile(const Geometry& geometry);

// One sequence and what is asked of it, whatever memory it will lie in.
struct RandomCase {
  Geometry geometry;
  DType dtype = DType::kBF16;
  int64_t tokens = 0;
  std::vector<int32_t> lengths;  // [layers * kv_heads]; empty: all rows hold `tokens`
  std::vector<std::byte> k, v;   // [layers, kv_heads, tokens, head_dim]
  std::vector<int32_t> positions;
  bool per_head_positions = false;
  int64_t logical_tokens = 0;  // 0: tokens
  std::vector<std::pair<int64_t, int64_t>> protected_ranges;
  pipeline::SideTensors side;
  pipeline::Policy policy;  // without placement and calibrations
  bool uses_centres = false;
  bool uses_moments = false;

  int64_t Layers() const { return geometry.model.num_layers; }
  int64_t KvHeads() const { return geometry.model.kv_heads; }
  int64_t Rows() const { return Layers() * KvHeads(); }
  int64_t Length(int64_t row) const { return lengths.empty() ? tokens : lengths[row]; }
  int64_t RowBytes() const { return geometry.model.head_dim * SizeOf(dtype); }
  bool Packs() const;  // codes other than raw16: nothing lies in a pool
};

// At most 256 tokens. Small, so that 10^4 of them take a minute.
RandomCase MakeRandomCase(int64_t geometry, uint64_t seed);
// For SCOPED_TRACE.
std::string Describe(const RandomCase& random);

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_RANDOM_CASE_H_
