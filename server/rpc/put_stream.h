// PutSequence and AppendSequence: chunks written straight into store blocks, published when
// complete.
#ifndef KVERN_SERVER_RPC_PUT_STREAM_H_
#define KVERN_SERVER_RPC_PUT_STREAM_H_

#include <memory>
#include <optional>

#include "kvern/v1/store.pb.h"
#include "server/rpc/dense_upload.h"
#include "server/rpc/read_stream.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

// Until it is published the sequence belongs to the stream: when that ends early its blocks go back
// to the store, which zeroes them.
class PutStream final : public ReadStream<v1::PutSequenceRequest> {
 public:
  PutStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
            v1::PutSequenceResponse* response);

 private:
  absl::StatusOr<Next> OnMessage(v1::PutSequenceRequest* message) override;
  void OnComplete() override;
  absl::Status OnHeader(const v1::StoredSequence& header);
  absl::Status Publish();

  const ServiceDeps deps_;
  v1::PutSequenceResponse* const response_;
  std::shared_ptr<memory::StoredSequence> sequence_;
  std::optional<DenseUpload> upload_;
};

class AppendStream final : public ReadStream<v1::AppendSequenceRequest> {
 public:
  AppendStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
               v1::AppendSequenceResponse* response);

 private:
  absl::StatusOr<Next> OnMessage(v1::AppendSequenceRequest* message) override;
  void OnComplete() override;
  absl::Status OnHeader(const v1::AppendHeader& header);
  absl::Status CopyAndPublish();

  const ServiceDeps deps_;
  v1::AppendSequenceResponse* const response_;
  std::shared_ptr<memory::StoredSequence> before_;
  std::shared_ptr<memory::StoredSequence> sequence_;
  std::optional<DenseUpload> upload_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_PUT_STREAM_H_
