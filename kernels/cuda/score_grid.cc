// Numbers the blocks of a cohort section by section.
#include "kernels/cuda/score_grid.h"

#include <vector>

#include "kernels/cuda/op.h"

namespace kvern::cuda {

ScoreGrid AddScoreGrid(Op& op, std::span<const SequenceRows> cohort, int32_t run_tokens) {
  ScoreGrid grid;
  grid.run_tokens = run_tokens;
  std::vector<GridSection> sections;
  int64_t first_row = 0;
  for (size_t sequence = 0; sequence < cohort.size(); ++sequence) {
    const auto [rows, tokens] = cohort[sequence];
    const int64_t runs = (tokens + run_tokens - 1) / run_tokens;
    if (rows > 0 && runs > 0) {
      sections.push_back({.first_block = grid.blocks,
                          .first_row = first_row,
                          .runs = FastDivisor::Of(static_cast<uint32_t>(runs)),
                          .tokens = static_cast<int32_t>(tokens),
                          .sequence = static_cast<int32_t>(sequence)});
      grid.blocks += rows * runs;
    }
    first_row += rows;
  }
  grid.section_count = static_cast<int32_t>(sections.size());
  grid.sections = op.Upload(sections);
  return grid;
}

}  // namespace kvern::cuda
