// Which block works on which scores: the rows of every sequence of a cohort, cut into runs of
// neighbouring tokens, as one launch however ragged the sequences are.
#ifndef KVERN_KERNELS_CUDA_SCORE_GRID_H_
#define KVERN_KERNELS_CUDA_SCORE_GRID_H_

#include <cstdint>
#include <span>

#include "kernels/base/host_device.h"
#include "kernels/cuda/problem.h"

namespace kvern::cuda {

class Op;

// Rows of one sequence that take blocks; sequences without scores have no section.
struct GridSection {
  int64_t first_block = 0;
  int64_t first_row = 0;  // of the cohort
  FastDivisor runs;       // of one row
  int32_t tokens = 0;     // of one row
  int32_t sequence = 0;
};

struct ScoreRun {
  int64_t row = 0;  // of the cohort
  int32_t sequence = 0;
  int32_t first = 0;  // token
  int32_t end = 0;
};

struct ScoreGrid {
  const GridSection* sections = nullptr;  // ascending blocks
  int32_t section_count = 0;
  int32_t run_tokens = 0;
  int64_t blocks = 0;

  KVERN_HD ScoreRun RunOf(int64_t block) const {
    int32_t low = 0;
    int32_t high = section_count - 1;
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (sections[middle].first_block <= block) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const GridSection& section = sections[low];
    const uint32_t within = static_cast<uint32_t>(block - section.first_block);
    const uint32_t row = section.runs.Divide(within);
    const int32_t first = static_cast<int32_t>(within - row * section.runs.divisor) * run_tokens;
    const int32_t left = section.tokens - first;
    return {section.first_row + row, section.sequence, first,
            first + (left < run_tokens ? left : run_tokens)};
  }
};

struct SequenceRows {
  int64_t rows = 0;
  int64_t tokens = 0;  // of each score row
};

// Host side. The grid of a cohort, its sections uploaded with `op`.
ScoreGrid AddScoreGrid(Op& op, std::span<const SequenceRows> cohort, int32_t run_tokens);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_SCORE_GRID_H_
