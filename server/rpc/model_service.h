// Models and their calibration.
#ifndef KVERN_SERVER_RPC_MODEL_SERVICE_H_
#define KVERN_SERVER_RPC_MODEL_SERVICE_H_

#include <string>

#include "kvern/v1/model.grpc.pb.h"
#include "server/rpc/observe_log.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

class ModelService final : public v1::ModelService::CallbackService {
 public:
  explicit ModelService(const ServiceDeps& deps) : deps_(deps), observe_log_(deps.GetLimits()) {}

  grpc::ServerUnaryReactor* RegisterModel(grpc::CallbackServerContext* context,
                                          const v1::RegisterModelRequest* request,
                                          v1::RegisterModelResponse* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override;
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* DeleteModel(grpc::CallbackServerContext* context,
                                        const v1::DeleteModelRequest* request,
                                        v1::DeleteModelResponse* response) override;
  grpc::ServerReadReactor<v1::ImportCalibrationRequest>* ImportCalibration(
      grpc::CallbackServerContext* context, v1::ImportCalibrationResponse* response) override;
  grpc::ServerReadReactor<v1::ObserveQueriesRequest>* ObserveQueries(
      grpc::CallbackServerContext* context, v1::ObserveQueriesResponse* response) override;
  grpc::ServerWriteReactor<v1::ExportCalibrationResponse>* ExportCalibration(
      grpc::CallbackServerContext* context, const v1::ExportCalibrationRequest* request) override;

 private:
  absl::Status Register(const v1::RegisterModelRequest& request,
                        v1::RegisterModelResponse* response);
  absl::Status Get(const v1::GetModelRequest& request, v1::GetModelResponse* response);
  absl::Status Delete(const v1::DeleteModelRequest& request);
  // FailedPrecondition/MODEL_IN_USE while pools or stored sequences name it.
  absl::Status CheckUnused(const std::string& id);

  const ServiceDeps deps_;
  ObserveLog observe_log_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_MODEL_SERVICE_H_
