// The engine calls back exactly once, and gRPC frees the call only after that.
#include "server/rpc/plan_calls.h"

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/compress_from_proto.h"
#include "server/rpc/compress_to_proto.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/plan_from_proto.h"

namespace kvern::rpc {
namespace {

class Call final : public grpc::ServerUnaryReactor {
 public:
  explicit Call(RpcScope scope) : scope_(std::move(scope)) {}

  const std::string& Peer() const { return scope_.Peer(); }
  const std::shared_ptr<std::atomic<bool>>& Cancelled() const { return cancelled_; }
  void SetCompress(const engine::CompressResult& result) { scope_.SetCompress(Summarize(result)); }
  // `this` may be gone when it returns.
  void End(const absl::Status& status) { Finish(scope_.End(status)); }

 private:
  void OnCancel() override { cancelled_->store(true); }
  void OnDone() override { delete this; }

  RpcScope scope_;
  const std::shared_ptr<std::atomic<bool>> cancelled_ = std::make_shared<std::atomic<bool>>(false);
};

absl::StatusOr<PlanRequest> MakePlan(const ServiceDeps& deps,
                                     const v1::PlanCompressionRequest& request) {
  KVERN_ASSIGN_OR_RETURN(const std::string model_id, ModelOf(request.compression()));
  KVERN_ASSIGN_OR_RETURN(const auto model, deps.engine->Models().Find(model_id));
  return FromProto(request, Edge{.limits = deps.GetLimits(), .model = &model->spec});
}

absl::Time Deadline(const ServiceDeps& deps, const grpc::CallbackServerContext& context) {
  return DeadlineOf(context, absl::Seconds(deps.GetLimits().default_deadline_seconds));
}

}  // namespace

grpc::ServerUnaryReactor* StartPlan(const ServiceDeps& deps, grpc::CallbackServerContext* context,
                                    const v1::PlanCompressionRequest& request,
                                    v1::PlanCompressionResponse* response) {
  auto* call = new Call(deps.Scope(engine::Rpc::kPlanCompression, *context));
  absl::StatusOr<PlanRequest> plan = MakePlan(deps, request);
  if (!plan.ok()) {
    call->End(plan.status());
    return call;
  }
  plan->job.peer = call->Peer();
  plan->job.cancelled = call->Cancelled();
  plan->job.deadline = Deadline(deps, *context);
  const auto seconds = static_cast<int32_t>(absl::ToInt64Seconds(plan->patience));
  deps.engine->Plan(std::move(plan->job), plan->patience,
                    [call, response, seconds](absl::StatusOr<engine::Planned> planned) {
                      if (!planned.ok()) return call->End(planned.status());
                      v1::CompressCacheResponse results;
                      ToProto(planned->result, &results);
                      response->mutable_results()->Swap(results.mutable_results());
                      response->set_plan(MakeName(planned->plan, Collection::kPlans));
                      if (!planned->plan.empty()) response->set_ttl_seconds(seconds);
                      call->SetCompress(planned->result);
                      call->End(absl::OkStatus());
                    });
  return call;
}

grpc::ServerUnaryReactor* StartApply(const ServiceDeps& deps, grpc::CallbackServerContext* context,
                                     const v1::ApplyCompressionRequest& request,
                                     v1::ApplyCompressionResponse* response) {
  RpcScope scope = deps.Scope(engine::Rpc::kApplyCompression, *context);
  scope.SetRequestId(request.request_id());
  auto* call = new Call(std::move(scope));
  absl::StatusOr<engine::ApplyJob> job = FromProto(request, deps.GetLimits());
  if (!job.ok()) {
    call->End(job.status());
    return call;
  }
  job->peer = call->Peer();
  job->cancelled = call->Cancelled();
  job->deadline = Deadline(deps, *context);
  deps.engine->Apply(*std::move(job),
                     [call, response](absl::StatusOr<engine::CompressResult> result) {
                       if (!result.ok()) return call->End(result.status());
                       v1::CompressCacheResponse results;
                       ToProto(*result, &results);
                       response->mutable_results()->Swap(results.mutable_results());
                       response->set_replayed(result->replayed);
                       call->SetCompress(*result);
                       call->End(absl::OkStatus());
                     });
  return call;
}

}  // namespace kvern::rpc
