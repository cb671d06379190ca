// Facts about the server, and the list of stages.
#ifndef KVERN_SERVER_RPC_SERVER_SERVICE_H_
#define KVERN_SERVER_RPC_SERVER_SERVICE_H_

#include <string>

#include "absl/time/time.h"
#include "kvern/v1/server.grpc.pb.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

struct ServerFacts {
  std::string version;
  std::string commit;
  std::string broker_address;
  std::string backend_reason;  // as ServicesOptions
  int threads = 1;
  absl::Time started;
};

class ServerService final : public v1::ServerService::CallbackService {
 public:
  ServerService(const ServiceDeps& deps, ServerFacts facts);

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;
  grpc::ServerUnaryReactor* ListStages(grpc::CallbackServerContext* context,
                                       const v1::ListStagesRequest* request,
                                       v1::ListStagesResponse* response) override;

 private:
  const ServiceDeps deps_;
  const ServerFacts facts_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_SERVER_SERVICE_H_
