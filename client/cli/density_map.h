// Pictures made of block characters: which slots a row holds, and how full something is.
#ifndef KVERN_CLIENT_CLI_DENSITY_MAP_H_
#define KVERN_CLIENT_CLI_DENSITY_MAP_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvern::cli {

// Share of [0, total) that is held, per column: column c covers total * c / columns up to
// total * (c + 1) / columns. Never more columns than `total`. Slots outside [0, total) are ignored.
std::vector<double> Density(std::span<const int32_t> held, int64_t total, int columns);

// One character per column, from space (nothing) to a full block (everything); whatever is neither
// shows as neither.
std::string DensityLine(std::span<const double> density);

// A bar of `width` columns that is full at 1, to an eighth of a column; never empty above 0.
std::string Bar(double share, int width);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_DENSITY_MAP_H_
