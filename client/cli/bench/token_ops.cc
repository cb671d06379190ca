// Selectors, and moves of the tokens that were selected.
#include <algorithm>
#include <cstring>
#include <memory>
#include <span>

#include "client/cli/bench/ops.h"

namespace kvern::bench {
namespace {

// Every step-th token of each head, at least one.
std::shared_ptr<KeepList> KeepEvery(const Shape& shape, int64_t step) {
  const auto kept = static_cast<int32_t>(std::max<int64_t>(1, shape.tokens / step));
  const std::vector<int32_t> counts(shape.kv_heads, kept);
  auto keep = std::make_shared<KeepList>(
      KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, shape.kv_heads)));
  for (int64_t head = 0; head < shape.kv_heads; ++head) {
    for (int64_t slot = 0; slot < kept; ++slot) {
      keep->Row(0, head)[slot] =
          static_cast<int32_t>(std::min(slot * step + step - 1, shape.tokens - 1));
    }
  }
  return keep;
}

// Scores and masks in, kept tokens out.
int64_t SelectBytes(const Shape& shape, const KeepList& keep) {
  return shape.ScoreBytes() + 2 * shape.tokens + static_cast<int64_t>(keep.tokens.size()) * 4;
}

// Reading and writing the kept rows of both roles.
int64_t MoveBytes(const Shape& shape, const KeepList& keep) {
  return 4 * static_cast<int64_t>(keep.tokens.size()) * shape.RowBytes();
}

// Keys and values with room for what is kept.
struct Rows {
  PagedRows keys;
  PagedRows values;
};

}  // namespace

absl::StatusOr<PreparedOp> PrepareTopK(const Setting& at) {
  const std::shared_ptr<KeepList> keep = KeepEvery(at.shape(), kSelectStep);
  return PreparedOp{[=] {
                      TopKArgs args;
                      args.scores = at.layer->Scores();
                      args.candidates = at.layer->All();
                      args.forced = at.layer->None();
                      return at.backend->TopK(args, keep.get());
                    },
                    SelectBytes(at.shape(), *keep)};
}

absl::StatusOr<PreparedOp> PrepareDiverse(const Setting& at, int64_t step) {
  const std::shared_ptr<KeepList> keep = KeepEvery(at.shape(), step);
  const int64_t value_bytes = static_cast<int64_t>(keep->tokens.size()) * at.shape().RowBytes();
  return PreparedOp{[=] {
                      DiverseArgs args;
                      args.scores = at.layer->Scores();
                      args.candidates = at.layer->All();
                      args.forced = at.layer->None();
                      args.values = at.layer->values.refs();
                      return at.backend->Diverse(args, keep.get());
                    },
                    SelectBytes(at.shape(), *keep) + value_bytes};
}

absl::StatusOr<PreparedOp> PrepareMemcpy(const Setting& at) {
  const auto out = std::make_shared<PagedRows>(at.shape(), at.shape().tokens);
  return PreparedOp{[=] {
                      const std::span<const std::byte> in = at.layer->keys.memory();
                      std::memcpy(out->memory().data(), in.data(), in.size());
                      return absl::OkStatus();
                    },
                    2 * at.shape().KeyBytes()};
}

absl::StatusOr<PreparedOp> PrepareCopy(const Setting& at, int64_t step) {
  const std::shared_ptr<KeepList> keep = KeepEvery(at.shape(), step);
  const auto out = std::make_shared<Rows>(
      Rows{PagedRows(at.shape(), keep->Count(0, 0)), PagedRows(at.shape(), keep->Count(0, 0))});
  return PreparedOp{[=] {
                      GatherArgs args[2];
                      args[0].in = at.layer->keys.refs();
                      args[0].out = out->keys.refs();
                      args[1].in = at.layer->values.refs();
                      args[1].out = out->values.refs();
                      args[0].keep = args[1].keep = keep.get();
                      return at.backend->Gather(args);
                    },
                    MoveBytes(at.shape(), *keep)};
}

absl::StatusOr<PreparedOp> PrepareMoveInPlace(const Setting& at) {
  const std::shared_ptr<KeepList> keep = KeepEvery(at.shape(), kMoveStep);
  // Rows of its own: what moved is gone, and other ops read the layer's. Moving again costs the
  // same.
  const auto rows = std::make_shared<Rows>(
      Rows{PagedRows(at.shape(), at.shape().tokens), PagedRows(at.shape(), at.shape().tokens)});
  rows->keys.FillNormal(/*seed=*/1);
  rows->values.FillNormal(/*seed=*/2);
  return PreparedOp{[=] {
                      GatherArgs args[2];
                      args[0].in = args[0].out = rows->keys.refs();
                      args[1].in = args[1].out = rows->values.refs();
                      for (GatherArgs& one : args) {
                        one.keep = keep.get();
                        one.in_place = true;
                      }
                      return at.backend->Gather(args);
                    },
                    MoveBytes(at.shape(), *keep)};
}

}  // namespace kvern::bench
