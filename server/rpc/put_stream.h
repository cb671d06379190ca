// PutSequence and AppendSequence: chunks written straight from gRPC's buffers into store blocks,
// published when complete.
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
class PutStream final : public ReadStream<grpc::ByteBuffer> {
 public:
  PutStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
            grpc::ByteBuffer* response);

 private:
  absl::StatusOr<Next> OnMessage(grpc::ByteBuffer* message) override;
  void OnComplete() override;
  absl::Status OnHeader(const v1::StoredSequence& header);
  absl::Status Publish();

  const ServiceDeps deps_;
  grpc::ByteBuffer* const response_;
  std::shared_ptr<memory::StoredSequence> sequence_;
  std::optional<DenseUpload> upload_;
};

class AppendStream final : public ReadStream<grpc::ByteBuffer> {
 public:
  AppendStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
               grpc::ByteBuffer* response);

 private:
  absl::StatusOr<Next> OnMessage(grpc::ByteBuffer* message) override;
  void OnComplete() override;
  absl::Status OnHeader(const v1::AppendHeader& header);
  absl::Status CopyAndPublish();

  const ServiceDeps deps_;
  grpc::ByteBuffer* const response_;
  std::shared_ptr<memory::StoredSequence> before_;
  std::shared_ptr<memory::StoredSequence> sequence_;
  std::optional<DenseUpload> upload_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_PUT_STREAM_H_
