// Gather of a cohort in one launch: keys and values of all its sequences.
#include "kernels/cuda/gather.h"

#include <algorithm>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {
namespace {

void CheckProblem(const GatherArgs& args) {
  KVERN_CHECK((args.from == nullptr) == (args.to == nullptr));
  KVERN_CHECK(args.from == nullptr || args.from->bands == args.to->bands);
  KVERN_CHECK(args.from == nullptr || args.from->layout == args.to->layout);
  for (int64_t layer = 0; layer < args.keep->layers; ++layer) {
    KVERN_CHECK(args.in[layer].dtype == args.out[layer].dtype);
    for (int64_t head = 0; head < args.keep->kv_heads; ++head) {
      const int64_t count = args.keep->Count(layer, head);
      KVERN_CHECK(count <= args.out[layer].tokens);
      const int32_t* kept = args.keep->Row(layer, head);
      for (int64_t slot = args.first_slot; args.in_place && slot < count; ++slot) {
        KVERN_CHECK(slot <= kept[slot]);
      }
    }
  }
}

// Runs of one row: a chunk each, or, in place, all of it by one block.
void AddRuns(int32_t row, int32_t first, int32_t end, int32_t length, std::vector<MoveRun>* runs) {
  for (; first < end; first += length) runs->push_back({row, first, std::min(end, first + length)});
}

}  // namespace

absl::Status Gather(DeviceContext& device, std::span<const GatherArgs> cohort) {
  if (cohort.empty()) return absl::OkStatus();
  Op op(device, "gather");
  std::vector<LayerRefs> in, out;
  std::vector<const RotationTable*> from, to;
  for (const GatherArgs& args : cohort) {
    CheckProblem(args);
    in.push_back(args.in);
    out.emplace_back(args.out);
    from.push_back(args.from);
    to.push_back(args.to);
  }
  GatherParams params;
  params.in = op.AddLayers(in, Access::kRead);
  params.out = op.AddLayers(out, Access::kReadWrite);
  params.from = op.AddRotations(from);
  params.to = op.AddRotations(to);
  const int64_t row_bytes = params.in.shape.head_dim * SizeOf(params.in.shape.dtype);
  params.chunk_rows = static_cast<int32_t>(kMoveChunkBytes / std::max<int64_t>(row_bytes, 1));
  std::vector<MoveRow> rows;
  std::vector<MoveRun> runs;
  int32_t first_kv = 0;
  for (size_t problem = 0; problem < cohort.size(); ++problem) {
    const GatherArgs& args = cohort[problem];
    const int32_t* keep = op.Upload(args.keep->tokens);
    for (int64_t row = 0; row < args.keep->layers * args.keep->kv_heads; ++row) {
      const auto layer = static_cast<int32_t>(row / args.keep->kv_heads);
      const auto head = static_cast<int32_t>(row % args.keep->kv_heads);
      const auto count = static_cast<int32_t>(args.keep->Count(layer, head));
      const auto first = static_cast<int32_t>(args.first_slot);
      AddRuns(static_cast<int32_t>(rows.size()), first, count,
              args.in_place ? std::max(count, 1) : params.chunk_rows, &runs);
      rows.push_back({first_kv + layer, layer, head, static_cast<int32_t>(problem),
                      keep == nullptr ? nullptr : keep + args.keep->offsets[row]});
    }
    first_kv += static_cast<int32_t>(args.in.size());
  }
  params.rows = op.Upload(rows);
  params.runs = op.Upload(runs);
  params.run_count = static_cast<int64_t>(runs.size());
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchGather(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
