// Rounding is towards the truth at the ends: full means all, blank means none.
#include "client/cli/density_map.h"

#include <algorithm>
#include <cmath>

namespace kvern::cli {
namespace {

constexpr const char* kShades[] = {" ", "░", "▒", "▓", "█"};
constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};

}  // namespace

std::vector<double> Density(std::span<const int32_t> held, int64_t total, int columns) {
  const int64_t cells = std::min<int64_t>(std::max(columns, 0), std::max<int64_t>(total, 0));
  std::vector<double> density(cells, 0);
  if (cells == 0) return density;
  const auto begin_of = [&](int64_t cell) { return total * cell / cells; };
  for (const int32_t slot : held) {
    if (slot < 0 || slot >= total) continue;
    // The division rounds down, so the cell may be one too low.
    int64_t cell = int64_t{slot} * cells / total;
    while (cell + 1 < cells && begin_of(cell + 1) <= slot) ++cell;
    density[cell] += 1.0 / static_cast<double>(begin_of(cell + 1) - begin_of(cell));
  }
  return density;
}

std::string DensityLine(std::span<const double> density) {
  // Sums of 1/n miss 1 by rounding.
  constexpr double kFull = 1 - 1e-9;
  std::string line;
  for (const double share : density) {
    const int shade = share <= 0       ? 0
                      : share >= kFull ? 4
                                       : std::clamp(1 + static_cast<int>(share * 3), 1, 3);
    line += kShades[shade];
  }
  return line;
}

std::string Bar(double share, int width) {
  const double clamped = std::isfinite(share) ? std::clamp(share, 0.0, 1.0) : 0.0;
  int64_t eighths = std::llround(clamped * std::max(width, 0) * 8);
  if (clamped > 0 && width > 0) eighths = std::max<int64_t>(eighths, 1);
  std::string bar;
  for (int64_t cell = 0; cell < eighths / 8; ++cell) bar += "█";
  return bar + kEighths[eighths % 8];
}

}  // namespace kvern::cli
