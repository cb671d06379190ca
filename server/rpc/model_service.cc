// What the registry keeps is immutable or locks itself, so answers need no locks here.
#include "server/rpc/model_service.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/export_stream.h"
#include "server/rpc/import_stream.h"
#include "server/rpc/model_from_proto.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/observe_stream.h"
#include "server/rpc/resource_to_proto.h"

namespace kvern::rpc {

grpc::ServerUnaryReactor* ModelService::RegisterModel(grpc::CallbackServerContext* context,
                                                      const v1::RegisterModelRequest* request,
                                                      v1::RegisterModelResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kRegisterModel, *context),
                  [&] { return Register(*request, response); });
}

grpc::ServerUnaryReactor* ModelService::GetModel(grpc::CallbackServerContext* context,
                                                 const v1::GetModelRequest* request,
                                                 v1::GetModelResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kGetModel, *context),
                  [&] { return Get(*request, response); });
}

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const v1::ListModelsRequest*,
                                                   v1::ListModelsResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kListModels, *context), [&] {
    const engine::ModelRegistry& registry = deps_.engine->Models();
    for (const auto& model : registry.List()) ToProto(model, response->add_models());
    for (const auto& artifact : registry.ListCalibrations()) {
      ToProto(artifact, response->add_calibrations());
    }
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ModelService::DeleteModel(grpc::CallbackServerContext* context,
                                                    const v1::DeleteModelRequest* request,
                                                    v1::DeleteModelResponse*) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kDeleteModel, *context),
                  [&] { return Delete(*request); });
}

grpc::ServerReadReactor<v1::ImportCalibrationRequest>* ModelService::ImportCalibration(
    grpc::CallbackServerContext* context, v1::ImportCalibrationResponse* response) {
  const auto stream = std::make_shared<ImportStream>(deps_, context, response);
  stream->Begin(absl::Seconds(deps_.GetLimits().idle_stream_seconds));
  return stream.get();  // owns itself until OnDone
}

grpc::ServerReadReactor<v1::ObserveQueriesRequest>* ModelService::ObserveQueries(
    grpc::CallbackServerContext* context, v1::ObserveQueriesResponse* response) {
  const auto stream = std::make_shared<ObserveStream>(deps_, context, response, &observe_log_);
  stream->Begin(absl::Seconds(deps_.GetLimits().idle_stream_seconds));
  return stream.get();  // owns itself until OnDone
}

grpc::ServerWriteReactor<v1::ExportCalibrationResponse>* ModelService::ExportCalibration(
    grpc::CallbackServerContext* context, const v1::ExportCalibrationRequest* request) {
  const auto stream = std::make_shared<ExportStream>(deps_, context);
  stream->Begin(*request);
  return stream.get();  // owns itself until OnDone
}

absl::Status ModelService::Register(const v1::RegisterModelRequest& request,
                                    v1::RegisterModelResponse* response) {
  KVERN_ASSIGN_OR_RETURN(engine::RegisteredModel model, FromProto(request, deps_.GetLimits()));
  KVERN_ASSIGN_OR_RETURN(const engine::RegisteredModel registered,
                         deps_.engine->Models().Register(std::move(model)));
  ToProto(registered, response->mutable_model());
  return absl::OkStatus();
}

absl::Status ModelService::Get(const v1::GetModelRequest& request, v1::GetModelResponse* response) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.name(), Collection::kModels, FieldPath("name")));
  const engine::ModelRegistry& registry = deps_.engine->Models();
  KVERN_ASSIGN_OR_RETURN(const auto model, registry.Find(id));
  ToProto(*model, response->mutable_model());
  for (const std::string& sha256 : model->calibrations) {
    KVERN_ASSIGN_OR_RETURN(const engine::CalibrationArtifact artifact,
                           registry.FindCalibration(sha256));
    ToProto(artifact, response->add_calibrations());
  }
  if (const auto observed = registry.Observed(*model)) {
    ToProto(observed->Describe(engine::ObservedQueries::Detail::kMeanErrors),
            response->mutable_observed());
  }
  return absl::OkStatus();
}

absl::Status ModelService::Delete(const v1::DeleteModelRequest& request) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.name(), Collection::kModels, FieldPath("name")));
  KVERN_RETURN_IF_ERROR(CheckUnused(id));
  deps_.engine->Models().Delete(id);
  return absl::OkStatus();
}

absl::Status ModelService::CheckUnused(const std::string& id) {
  int64_t pools = 0;
  for (const auto& pool : deps_.engine->Pools().List()) pools += pool->spec.model == id ? 1 : 0;
  int64_t sequences = 0;
  for (const auto& sequence : deps_.engine->Store().List()) {
    sequences += sequence->Info().model == id ? 1 : 0;
  }
  if (pools == 0 && sequences == 0) return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError(absl::StrCat("models/", id, ": got ", pools, " pools and ",
                                                 sequences, " stored sequences, want none")),
      "MODEL_IN_USE");
}

}  // namespace kvern::rpc
