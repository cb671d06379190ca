// Encode of a cohort in one launch: keys and values of all sequences, whatever their codecs.
#include "kernels/cuda/encode.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/coded_cohort.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status Encode(DeviceContext& device, std::span<const EncodeArgs> cohort) {
  Op op(device, "encode");
  CodedCohort coded(op);
  std::vector<int64_t> first_row;
  for (const EncodeArgs& args : cohort) {
    first_row.push_back(coded.Count());
    coded.Add(args);
  }
  first_row.push_back(coded.Count());
  EncodeParams params;
  params.coding = coded.Finish(Turn::kForward);
  std::vector<RowCounts> counts(coded.Count());
  params.counts = op.Result(std::span(counts));
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchEncode(params, op.stream()));
  KVERN_RETURN_IF_ERROR(op.End());
  for (size_t i = 0; i < cohort.size(); ++i) {
    EncodeCounts sum;
    for (int64_t row = first_row[i]; row < first_row[i + 1]; ++row) {
      sum.nonfinite += counts[row].nonfinite;
      sum.squared_error += counts[row].squared_error;
      sum.squared_norm += counts[row].squared_norm;
    }
    *cohort[i].counts = sum;
  }
  return absl::OkStatus();
}

}  // namespace kvern::cuda
