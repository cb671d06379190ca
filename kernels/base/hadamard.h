// H: the signed orthonormal Hadamard rotation of a head, y = H (signs * x).
//
// A head_dim of 2^m times 1, 12, 20 or 28 is one block: the Kronecker product of a Hadamard matrix
// of that base order with Sylvester's of order 2^m. Any other multiple of 8 is split into such
// blocks, the largest that fits first (88 = 80 + 8), each transformed by itself.
#ifndef KVERN_KERNELS_BASE_HADAMARD_H_
#define KVERN_KERNELS_BASE_HADAMARD_H_

#include <cstdint>
#include <vector>

#include "kernels/base/host_device.h"

namespace kvern {

// SplitMix64. Seeded with head_dim, bit 0 of its i-th output says whether sign i is -1 (ruling 13).
KVERN_HD constexpr uint64_t NextSign(uint64_t* state) {
  *state += 0x9E3779B97F4A7C15u;
  uint64_t mixed = *state;
  mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
  return mixed ^ (mixed >> 31);
}

// Coordinate first + r * run + c of the head: r runs over the base matrix, c over Sylvester's.
struct HadamardBlock {
  int32_t first = 0;
  int32_t base_order = 1;             // 1, 12, 20 or 28
  int32_t run = 8;                    // 2^m
  float scale = 1.0f;                 // 1 / sqrt(order), applied after the last addition
  const float* base = nullptr;        // [base_order, base_order] of +-1; null for order 1
  const float* transposed = nullptr;  // its transpose, for the way back

  int32_t Order() const { return base_order * run; }
};

struct Hadamard {
  int32_t head_dim = 0;
  std::vector<HadamardBlock> blocks;
  std::vector<float> signs;  // [head_dim] of +-1 (ruling 13)
};

inline constexpr int32_t kMaxHadamardBase = 28;

// The rotation of a head_dim that is a multiple of 8 in 8..1024. Lives for ever. Thread-safe.
const Hadamard& HadamardOf(int32_t head_dim);

// x [head_dim] in place. Signs, then per block the butterflies of strides 1, 2, ... run / 2, then
// the base matrix (each sum in index order), then the scale; the way back ends with the signs.
void RotateByHadamard(const Hadamard& hadamard, float* x);
void UnrotateByHadamard(const Hadamard& hadamard, float* x);

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_HADAMARD_H_
