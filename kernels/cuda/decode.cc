// Decode of a cohort in one launch.
#include "kernels/cuda/decode.h"

#include "kernels/base/status_macros.h"
#include "kernels/cuda/coded_cohort.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status Decode(DeviceContext& device, std::span<const DecodeArgs> cohort) {
  Op op(device, "decode");
  CodedCohort coded(op);
  for (const DecodeArgs& args : cohort) coded.Add(args);
  DecodeParams params;
  params.coding = coded.Finish(Turn::kBack);
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchDecode(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
