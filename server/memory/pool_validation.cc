// A pool is accepted only when every address that its views can form was shown to be its own.
#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/memory/footprint.h"
#include "server/memory/pool.h"

namespace kvern::memory {
namespace {

constexpr int64_t kMaxBlocks = (int64_t{1} << 32) - 1;

absl::Status Invalid(absl::string_view field, const std::string& problem) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", problem)), field);
}

struct Range {
  int64_t low;
  int64_t high;
};
absl::Status InRange(absl::string_view field, int64_t got, Range want) {
  if (got >= want.low && got <= want.high) return absl::OkStatus();
  return Invalid(field, absl::StrCat("got ", got, ", want ", want.low, " to ", want.high));
}

// The request names the model; its numbers have no field of their own there.
absl::Status ValidateModel(const PoolSpec& spec, const Limits& limits) {
  KVERN_RETURN_IF_ERROR(WithField(
      InRange("kv_heads of pool.model", spec.kv_heads, {1, limits.kv_heads}), "pool.model"));
  KVERN_RETURN_IF_ERROR(WithField(
      InRange("head_dim of pool.model", spec.head_dim, {8, limits.head_dim}), "pool.model"));
  if (spec.head_dim % 8 == 0) return absl::OkStatus();
  return Invalid("pool.model",
                 absl::StrCat("head_dim got ", spec.head_dim, ", want a multiple of 8"));
}

absl::Status ValidateShape(const PoolSpec& spec, size_t regions, const Limits& limits) {
  KVERN_RETURN_IF_ERROR(ValidateModel(spec, limits));
  KVERN_RETURN_IF_ERROR(InRange("pool.block_tokens", spec.block_tokens, {1, limits.block_tokens}));
  KVERN_RETURN_IF_ERROR(InRange("pool.num_blocks", spec.num_blocks, {1, kMaxBlocks}));
  KVERN_RETURN_IF_ERROR(InRange("pool.max_shape_class", spec.max_shape_class, {0, 4}));
  const Range region_range = {1, limits.regions_per_pool};
  if (const auto count = static_cast<int64_t>(regions);
      count < region_range.low || count > region_range.high) {
    return Invalid("pool.regions", absl::StrCat("got ", count, " regions, want ", region_range.low,
                                                " to ", region_range.high));
  }
  const auto layers = static_cast<int64_t>(spec.layers.size());
  if (layers < 1 || layers > limits.layers) {
    return Invalid("pool.layers",
                   absl::StrCat("got ", layers, " layers, want 1 to ", limits.layers));
  }
  int64_t next = 0;
  for (size_t slot = 0; slot < spec.layers.size(); ++slot) {
    const int64_t layer = spec.layers[slot].layer;
    KVERN_RETURN_IF_ERROR(
        InRange(absl::StrCat("pool.layers[", slot, "].layer"), layer, {next, limits.layers - 1}));
    next = layer + 1;  // ascending, so none comes twice
  }
  return absl::OkStatus();
}

// One view of the pool, where it is named in the request and what it can touch.
struct NamedFootprint {
  std::string field;
  int32_t region = 0;
  Footprint footprint;
};

struct NamedStride {
  const char* name;
  int64_t bytes;
  int64_t extent;
};
std::array<NamedStride, 4> StridesOf(const PoolSpec& spec, const PoolView& view) {
  return {{{"block_stride", view.strides.block, spec.num_blocks},
           {"head_stride", view.strides.head, spec.kv_heads},
           {"token_stride", view.strides.token, spec.block_tokens},
           {"dim_stride", view.strides.dim, spec.head_dim}}};
}

// Even an axis of one element keeps a stride within the region: kernels may form, though never
// follow, the next address.
absl::Status ValidateStride(const std::string& field, const NamedStride& stride,
                            const Range& bounds) {
  const int64_t element_bytes = bounds.low;
  const int64_t region_bytes = bounds.high;
  if (stride.bytes % element_bytes != 0) {
    return Invalid(absl::StrCat(field, ".", stride.name),
                   absl::StrCat("got ", stride.bytes, " bytes, want a multiple of the element's ",
                                element_bytes));
  }
  return InRange(absl::StrCat(field, ".", stride.name), stride.bytes,
                 {-region_bytes, region_bytes});
}

absl::StatusOr<NamedFootprint> ValidateView(const PoolSpec& spec,
                                            const std::vector<std::shared_ptr<Region>>& regions,
                                            const PoolView& view, const std::string& field) {
  KVERN_RETURN_IF_ERROR(InRange(absl::StrCat(field, ".region"), view.region,
                                {0, static_cast<int64_t>(regions.size()) - 1}));
  const int64_t size = regions[view.region]->SizeBytes();
  const int64_t element = SizeOf(spec.dtype);
  const std::string base_field = absl::StrCat(field, ".base_offset");
  KVERN_RETURN_IF_ERROR(InRange(base_field, view.base_offset, {0, size - 1}));
  if (view.base_offset % element != 0) {
    return Invalid(base_field, absl::StrCat("got ", view.base_offset,
                                            ", want a multiple of the element's ", element));
  }
  std::vector<ViewAxis> axes;
  for (const NamedStride& stride : StridesOf(spec, view)) {
    KVERN_RETURN_IF_ERROR(ValidateStride(field, stride, {element, size}));
    axes.push_back({stride.bytes, stride.extent});
  }
  NamedFootprint named = {field, view.region, FootprintOf(view.base_offset, element, axes)};
  if (named.footprint.begin < 0 || named.footprint.end > size) {
    return Invalid(field, absl::StrCat("got strides that leave the region of ", size,
                                       " bytes, want every block, head, token and dim inside it"));
  }
  if (!named.footprint.nested) {
    return Invalid(field,
                   "got strides under which two elements share an address, want each larger "
                   "stride to step over everything that the smaller ones span");
  }
  return named;
}

absl::Status ValidateApart(const NamedFootprint& a, const NamedFootprint& b) {
  if (a.region != b.region || AreApart(a.footprint, b.footprint)) return absl::OkStatus();
  return Invalid(b.field,
                 absl::StrCat("got a view that overlaps ", a.field, " in region ", a.region,
                              " or cannot be shown to lie apart; want views in separate ranges, or "
                              "side by side inside the same outer strides"));
}

}  // namespace

absl::Status ValidatePool(const PoolSpec& spec, const std::vector<std::shared_ptr<Region>>& regions,
                          const Limits& limits) {
  KVERN_RETURN_IF_ERROR(ValidateShape(spec, regions.size(), limits));
  std::vector<NamedFootprint> views;
  views.reserve(spec.layers.size() * 2);
  for (size_t slot = 0; slot < spec.layers.size(); ++slot) {
    const PoolLayer& layer = spec.layers[slot];
    const std::string field = absl::StrCat("pool.layers[", slot, "]");
    KVERN_ASSIGN_OR_RETURN(NamedFootprint k,
                           ValidateView(spec, regions, layer.k, absl::StrCat(field, ".k")));
    views.push_back(std::move(k));
    KVERN_ASSIGN_OR_RETURN(NamedFootprint v,
                           ValidateView(spec, regions, layer.v, absl::StrCat(field, ".v")));
    views.push_back(std::move(v));
  }
  for (size_t second = 1; second < views.size(); ++second) {
    for (size_t first = 0; first < second; ++first) {
      KVERN_RETURN_IF_ERROR(ValidateApart(views[first], views[second]));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::memory
