// What encode and decode launches share: one block of threads per row of a packed table.
#ifndef KVERN_KERNELS_CUDA_CODED_ROW_H_
#define KVERN_KERNELS_CUDA_CODED_ROW_H_

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/packed_layout.h"
#include "kernels/cuda/lm4_cell.h"
#include "kernels/cuda/problem.h"

namespace kvern::cuda {

inline constexpr int32_t kMaxHeadDim = 1024;

// A row of a packed table, in the terms of its cohort.
struct CodedRow {
  int64_t codes = 0;   // byte offset of its CODES plane into the sequence's `packed`
  int32_t signs = 0;   // byte offsets of the other planes from that one
  int32_t scales = 0;  // unused by raw16
  int32_t zeros = 0;
  int32_t code_row_bytes = 0;  // of one token
  int64_t sources = 0;         // index of its first token into the sequence's `sources`
  int32_t sequence = 0;
  int32_t kv = 0;  // index of its KvLayer
  int32_t layer = 0;
  int32_t head = 0;
  int32_t first_slot = 0;
  uint8_t tokens = 0;  // 1..64
  CodecId codec = CodecId::kRaw16;
  bool hadamard = false;
  bool rope_mean = false;
};

struct CodedSequence {
  std::byte* packed = nullptr;        // decode only reads it
  const int32_t* sources = nullptr;   // encode: kept tokens, ascending per (layer, kv_head)
  const Float16* mean_key = nullptr;  // [layers, kv_heads, head_dim]; null without rm
  int32_t kv_heads = 0;
};

// HadamardBlock of kernels/base/hadamard.h on the device.
struct DeviceHadamardBlock {
  int32_t first = 0;
  int32_t base_order = 1;
  int32_t log2_run = 3;
  int32_t order = 8;
  float scale = 1.0f;
  const float* base = nullptr;  // [base_order, base_order], transposed for the way back
};
inline constexpr int32_t kMaxHadamardBlocks = 4;  // 3 at most for a head_dim of 8..1024
struct DeviceHadamard {
  const float* signs = nullptr;  // [head_dim]
  int32_t blocks = 0;
  DeviceHadamardBlock block[kMaxHadamardBlocks];
};

// How a launch reads and writes rows: in registers, two threads a token (bf16 or f16, head_dim 64
// or 128, contiguous rows, aligned codes, every coordinate rotated and in the half layout), or by
// 16 threads in shared memory.
enum class CodingPath : uint8_t { kPairs, kGroups };

struct CodingParams {
  RowShape shape;
  CodingPath path = CodingPath::kGroups;
  const CodedRow* rows = nullptr;  // one per block of threads
  int64_t count = 0;
  const CodedSequence* sequences = nullptr;
  const DeviceRotation* rotations = nullptr;  // one per sequence
  const KvLayer* layers = nullptr;
  DeviceHadamard hadamard;
  Lm4Tables lm4;
  const uint32_t* sfv_words = nullptr;  // of sfv3 (256), then of sfv2 (16); null without such rows
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CODED_ROW_H_
