// Base matrices by Paley's constructions over a prime field, everything else by butterflies.
#include "kernels/base/hadamard.h"

#include <cmath>

#include "kernels/base/status_macros.h"

namespace kvern {
namespace {

constexpr int32_t kStep = 8;
constexpr int32_t kMaxHeadDim = 1024;
constexpr int32_t kBaseOrders[] = {1, 12, 20, 28};

// 1 for a non-zero square mod the prime, -1 for a non-square, 0 for 0.
int QuadraticCharacter(int value, int prime) {
  value = ((value % prime) + prime) % prime;
  if (value == 0) return 0;
  for (int root = 1; root < prime; ++root) {
    if (root * root % prime == value) return 1;
  }
  return -1;
}

// Entry of Paley's bordered matrix of order prime + 1; `corner` is the sign of its first column.
int Bordered(int row, int column, int prime, int corner) {
  if (row == 0) return column == 0 ? 0 : 1;
  if (column == 0) return corner;
  return QuadraticCharacter(row - column, prime);
}

// Prime = 3 mod 4: order prime + 1, I + S with S skew.
float PaleyFirst(int row, int column, int prime) {
  return static_cast<float>(Bordered(row, column, prime, -1) + (row == column ? 1 : 0));
}

// Prime = 1 mod 4: order 2 (prime + 1), S symmetric; each entry becomes a block of 2 x 2.
float PaleySecond(int row, int column, int prime) {
  const int entry = Bordered(row / 2, column / 2, prime, 1);
  const bool both_odd = row % 2 == 1 && column % 2 == 1;
  if (entry != 0) return static_cast<float>(both_odd ? -entry : entry);
  return row % 2 == 0 && column % 2 == 0 ? 1.0f : -1.0f;
}

float BaseEntry(int row, int column, int order) {
  if (order == 28) return PaleySecond(row, column, 13);
  return PaleyFirst(row, column, order - 1);
}

struct BaseMatrix {
  std::vector<float> rows;
  std::vector<float> columns;
};

const BaseMatrix* MakeBase(int order) {
  auto* matrix = new BaseMatrix;
  for (int row = 0; row < order; ++row) {
    for (int column = 0; column < order; ++column) {
      matrix->rows.push_back(BaseEntry(row, column, order));
      matrix->columns.push_back(BaseEntry(column, row, order));
    }
  }
  return matrix;
}

const BaseMatrix* BaseOf(int order) {
  static const BaseMatrix* const order12 = MakeBase(12);
  static const BaseMatrix* const order20 = MakeBase(20);
  static const BaseMatrix* const order28 = MakeBase(28);
  return order == 12 ? order12 : order == 20 ? order20 : order28;
}

// The largest block of at most `most` coordinates.
HadamardBlock LargestBlock(int32_t most) {
  HadamardBlock best;
  for (const int32_t base : kBaseOrders) {
    int32_t run = 1;
    while (2 * run * base <= most) run *= 2;
    if (run * base % kStep != 0 || run * base > most || run * base < best.Order()) continue;
    best.base_order = base;
    best.run = run;
  }
  best.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(best.Order())));
  if (best.base_order > 1) {
    best.base = BaseOf(best.base_order)->rows.data();
    best.transposed = BaseOf(best.base_order)->columns.data();
  }
  return best;
}

Hadamard MakeHadamard(int32_t head_dim) {
  Hadamard hadamard;
  hadamard.head_dim = head_dim;
  for (int32_t first = 0; first < head_dim; first += hadamard.blocks.back().Order()) {
    hadamard.blocks.push_back(LargestBlock(head_dim - first));
    hadamard.blocks.back().first = first;
  }
  uint64_t state = static_cast<uint64_t>(head_dim);
  for (int32_t i = 0; i < head_dim; ++i) {
    hadamard.signs.push_back((NextSign(&state) & 1) != 0 ? -1.0f : 1.0f);
  }
  return hadamard;
}

void Butterflies(const HadamardBlock& block, float* x) {
  for (int32_t stride = 1; stride < block.run; stride *= 2) {
    for (int32_t start = 0; start < block.Order(); start += 2 * stride) {
      for (int32_t i = start; i < start + stride; ++i) {
        const float low = x[i];
        const float high = x[i + stride];
        x[i] = low + high;
        x[i + stride] = low - high;
      }
    }
  }
}

// Column c of the runs becomes matrix times column.
void MultiplyBase(const HadamardBlock& block, const float* matrix, float* x) {
  const int32_t order = block.base_order;
  for (int32_t c = 0; c < block.run; ++c) {
    float column[kMaxHadamardBase];
    for (int32_t r = 0; r < order; ++r) column[r] = x[r * block.run + c];
    for (int32_t r = 0; r < order; ++r) {
      float sum = matrix[r * order] * column[0];
      for (int32_t k = 1; k < order; ++k) sum = std::fma(matrix[r * order + k], column[k], sum);
      x[r * block.run + c] = sum;
    }
  }
}

void TransformBlock(const HadamardBlock& block, const float* matrix, float* x) {
  Butterflies(block, x);
  if (matrix != nullptr) MultiplyBase(block, matrix, x);
  for (int32_t i = 0; i < block.Order(); ++i) x[i] *= block.scale;
}

}  // namespace

const Hadamard& HadamardOf(int32_t head_dim) {
  KVERN_CHECK(head_dim >= kStep && head_dim <= kMaxHeadDim && head_dim % kStep == 0);
  static const std::vector<Hadamard>* const all = [] {
    auto* made = new std::vector<Hadamard>;
    for (int32_t dim = kStep; dim <= kMaxHeadDim; dim += kStep) made->push_back(MakeHadamard(dim));
    return made;
  }();
  return (*all)[head_dim / kStep - 1];
}

void RotateByHadamard(const Hadamard& hadamard, float* x) {
  for (int32_t i = 0; i < hadamard.head_dim; ++i) x[i] *= hadamard.signs[i];
  for (const HadamardBlock& block : hadamard.blocks) {
    TransformBlock(block, block.base, x + block.first);
  }
}

void UnrotateByHadamard(const Hadamard& hadamard, float* x) {
  for (const HadamardBlock& block : hadamard.blocks) {
    TransformBlock(block, block.transposed, x + block.first);
  }
  for (int32_t i = 0; i < hadamard.head_dim; ++i) x[i] *= hadamard.signs[i];
}

}  // namespace kvern
