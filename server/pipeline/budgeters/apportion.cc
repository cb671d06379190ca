// Largest remainder: floors first, then one more for the largest fractions until the sum is exact.
#include "server/pipeline/budgeters/apportion.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvern::pipeline {
namespace {

double WeightOf(const std::vector<double>& weights, const ScratchVector<size_t>& open) {
  double sum = 0;
  for (const size_t index : open) sum += weights[index];
  return sum;
}

// Share of an open index; all-zero weights are equal ones.
double ShareOf(double weight, double weight_sum, int64_t total, size_t open) {
  const double part = weight_sum > 0 ? weight / weight_sum : 1.0 / static_cast<double>(open);
  return static_cast<double>(total) * part;
}

// Gives the cap to indices whose share exceeds it until none does.
void FillCapped(const std::vector<double>& weights, int64_t cap, ScratchVector<size_t>* open,
                ScratchVector<int64_t>* shares, int64_t* total) {
  while (true) {
    const double sum = WeightOf(weights, *open);
    const int64_t rest = *total;
    const auto over = [&](size_t index) {
      return ShareOf(weights[index], sum, rest, open->size()) > static_cast<double>(cap);
    };
    const auto split = std::stable_partition(open->begin(), open->end(),
                                             [&](size_t index) { return !over(index); });
    if (split == open->end()) return;
    for (auto index = split; index != open->end(); ++index) (*shares)[*index] = cap;
    *total -= cap * (open->end() - split);
    open->erase(split, open->end());
  }
}

}  // namespace

ScratchVector<int64_t> Apportion(const std::vector<double>& weights, int64_t total, int64_t cap) {
  const int64_t count = static_cast<int64_t>(weights.size());
  ScratchVector<int64_t> shares(weights.size(), 0);
  if (count == 0 || total <= 0) return shares;
  if (total / count >= cap) return ScratchVector<int64_t>(weights.size(), cap);
  ScratchVector<size_t> open(weights.size());
  std::iota(open.begin(), open.end(), size_t{0});
  FillCapped(weights, cap, &open, &shares, &total);

  const double sum = WeightOf(weights, open);
  ScratchVector<double> fraction(weights.size(), 0);
  int64_t left = total;
  for (const size_t index : open) {
    const double share = ShareOf(weights[index], sum, total, open.size());
    // An f64 share may round up past an integer: never hand out more than is left.
    shares[index] = std::min({static_cast<int64_t>(std::floor(share)), left, cap});
    fraction[index] = share - static_cast<double>(shares[index]);
    left -= shares[index];
  }
  std::stable_sort(open.begin(), open.end(),
                   [&](size_t a, size_t b) { return fraction[a] > fraction[b]; });
  while (left > 0) {
    for (const size_t index : open) {
      if (left == 0) break;
      if (shares[index] == cap) continue;
      ++shares[index];
      --left;
    }
  }
  return shares;
}

}  // namespace kvern::pipeline
