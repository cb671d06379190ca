// ObserveQueries: each message checked and counted on the worker, one after the other.
#ifndef KVERN_SERVER_RPC_OBSERVE_STREAM_H_
#define KVERN_SERVER_RPC_OBSERVE_STREAM_H_

#include <memory>
#include <string>

#include "kvern/v1/model.pb.h"
#include "server/rpc/observe_log.h"
#include "server/rpc/read_stream.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

class ObserveStream final : public ReadStream<v1::ObserveQueriesRequest> {
 public:
  // `log` outlives the stream.
  ObserveStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
                v1::ObserveQueriesResponse* response, ObserveLog* log);

 private:
  absl::StatusOr<Next> OnMessage(v1::ObserveQueriesRequest* message) override;
  void OnComplete() override;
  // The same without fear of running out of memory.
  absl::StatusOr<Next> TryCount(const v1::ObserveQueriesRequest& message);
  absl::StatusOr<Next> Count(const v1::ObserveQueriesRequest& message);
  absl::Status Open(const v1::ObserveQueriesRequest& first);
  void Add(const pipeline::QueryBatch& batch);
  // Adds it, unless an earlier stream of the id counted this message.
  absl::Status AddOnce(const v1::ObserveQueriesRequest& message, const pipeline::QueryBatch& batch);
  absl::Status Conclude();

  const ServiceDeps deps_;
  v1::ObserveQueriesResponse* const response_;
  ObserveLog* const log_;
  const std::string peer_;
  std::shared_ptr<const engine::RegisteredModel> model_;
  std::shared_ptr<engine::ObservedQueries> observed_;
  std::shared_ptr<ObserveLog::Progress> progress_;  // null without a request_id
  int64_t messages_ = 0;                            // of this stream
  std::string chain_;                               // their digest
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_OBSERVE_STREAM_H_
