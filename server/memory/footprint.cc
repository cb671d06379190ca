// Sorted by stride, an axis that steps over the span of all smaller ones cannot collide with them.
#include "server/memory/footprint.h"

#include <algorithm>
#include <cstddef>

namespace kvern::memory {
namespace {

Wide SpanOf(const ViewAxis& axis) { return Wide{axis.extent - 1} * axis.stride_bytes; }

// Bytes from first to last of a piece and `count` innermost axes.
Wide InnerSpan(const Footprint& footprint, size_t count) {
  Wide span = footprint.run;
  for (size_t i = 0; i < count; ++i) span += SpanOf(footprint.axes[i]);
  return span;
}

// Whether the axes from `first` on step over each other when what they repeat is `span` bytes long.
bool StepOver(const std::vector<ViewAxis>& axes, size_t first, Wide span) {
  for (size_t i = first; i < axes.size(); ++i) {
    if (axes[i].stride_bytes < span) return false;
    span += SpanOf(axes[i]);
  }
  return true;
}

void FoldSigns(Footprint* footprint, std::vector<ViewAxis> axes) {
  for (ViewAxis& axis : axes) {
    if (axis.extent <= 1) continue;
    if (axis.stride_bytes < 0) {
      footprint->begin += SpanOf(axis);
      axis.stride_bytes = -axis.stride_bytes;
    } else {
      footprint->end += SpanOf(axis);
    }
    footprint->axes.push_back(axis);
  }
}

}  // namespace

Footprint FootprintOf(int64_t base_offset, int64_t element_bytes, std::vector<ViewAxis> axes) {
  for (ViewAxis& axis : axes) {
    // The one stride without a positive twin; no region is half as large.
    axis.stride_bytes = std::max(axis.stride_bytes, -INT64_MAX);
  }
  Footprint footprint;
  footprint.begin = base_offset;
  footprint.end = Wide{base_offset} + element_bytes;
  footprint.run = element_bytes;
  FoldSigns(&footprint, std::move(axes));
  std::sort(footprint.axes.begin(), footprint.axes.end(),
            [](const ViewAxis& a, const ViewAxis& b) { return a.stride_bytes < b.stride_bytes; });
  size_t merged = 0;
  while (merged < footprint.axes.size() && footprint.axes[merged].stride_bytes == footprint.run) {
    footprint.run *= footprint.axes[merged].extent;
    ++merged;
  }
  footprint.axes.erase(footprint.axes.begin(),
                       footprint.axes.begin() + static_cast<ptrdiff_t>(merged));
  footprint.nested = StepOver(footprint.axes, 0, footprint.run);
  return footprint;
}

bool AreApart(const Footprint& a, const Footprint& b) {
  const Footprint& low = a.begin <= b.begin ? a : b;
  const Footprint& high = a.begin <= b.begin ? b : a;
  const Wide distance = high.begin - low.begin;
  const size_t most = std::min(low.axes.size(), high.axes.size());
  for (size_t shared = 0; shared <= most; ++shared) {
    const size_t low_inner = low.axes.size() - shared;
    const size_t high_inner = high.axes.size() - shared;
    if (shared > 0) {
      const ViewAxis& x = low.axes[low_inner];
      const ViewAxis& y = high.axes[high_inner];
      if (x.stride_bytes != y.stride_bytes || x.extent != y.extent) return false;
    }
    if (distance < InnerSpan(low, low_inner)) continue;
    if (StepOver(low.axes, low_inner, distance + InnerSpan(high, high_inner))) return true;
  }
  return false;
}

}  // namespace kvern::memory
