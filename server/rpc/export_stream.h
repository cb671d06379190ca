// ExportCalibration: a file of observed queries, made on the worker, sent in chunks of 1 MiB.
#ifndef KVERN_SERVER_RPC_EXPORT_STREAM_H_
#define KVERN_SERVER_RPC_EXPORT_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "kvern/v1/model.pb.h"
#include "server/rpc/idle_timer.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

// Owns itself from Begin to OnDone.
class ExportStream final : public grpc::ServerWriteReactor<v1::ExportCalibrationResponse>,
                           public std::enable_shared_from_this<ExportStream> {
 public:
  ExportStream(const ServiceDeps& deps, grpc::CallbackServerContext* context);
  void Begin(const v1::ExportCalibrationRequest& request);

 private:
  absl::Status Open(const v1::ExportCalibrationRequest& request);
  absl::Status Make();
  void SendFirst();
  void SendNext();
  void CancelSilentClient();
  void End(const absl::Status& status) { Finish(scope_.End(status)); }
  void OnWriteDone(bool ok) override;
  void OnDone() override;

  const ServiceDeps deps_;
  RpcScope scope_;
  ByteBudget::Share share_;
  std::shared_ptr<const engine::RegisteredModel> model_;
  std::shared_ptr<engine::ObservedQueries> observed_;
  std::string format_;
  std::string file_;
  size_t offset_ = 0;
  v1::ExportCalibrationResponse message_;
  std::optional<IdleTimer> timer_;
  // Recursive because TryCancel may run OnDone before it returns, on the same thread.
  std::recursive_mutex context_mutex_;
  grpc::CallbackServerContext* context_;  // null once gRPC is done with it
  std::shared_ptr<ExportStream> self_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_EXPORT_STREAM_H_
