// FetchSequence: one header, then chunks of at most 1 MiB, out of the store's blocks or decoded.
#ifndef KVERN_SERVER_RPC_FETCH_STREAM_H_
#define KVERN_SERVER_RPC_FETCH_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "kvern/v1/store.pb.h"
#include "server/rpc/dense_bytes.h"
#include "server/rpc/idle_timer.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

// Owns itself from Begin to OnDone; holds the sequence, so that a delete meanwhile harms nothing.
class FetchStream final : public grpc::ServerWriteReactor<v1::FetchSequenceResponse>,
                          public std::enable_shared_from_this<FetchStream> {
 public:
  FetchStream(const ServiceDeps& deps, grpc::CallbackServerContext* context);
  void Begin(const v1::FetchSequenceRequest& request);

 private:
  // One tensor of the stream, in order of sending.
  struct Part {
    v1::Chunk::Part part;
    int64_t bytes;
  };
  absl::Status Open(const v1::FetchSequenceRequest& request);
  absl::Status Decode();
  void SendHeader();
  void SendNext();
  absl::Status ReadPart(v1::Chunk::Part part, int64_t offset, std::span<std::byte> bytes) const;
  void CancelSilentClient();
  void End(const absl::Status& status);
  void OnWriteDone(bool ok) override;
  void OnDone() override;

  const ServiceDeps deps_;
  RpcScope scope_;
  const absl::Time deadline_;
  std::shared_ptr<memory::StoredSequence> sequence_;
  bool decode_ = false;
  ByteBudget::Share share_;
  std::vector<std::byte> decoded_k_, decoded_v_;
  std::optional<DenseBytes> keys_, values_;
  std::vector<Part> parts_;
  size_t part_ = 0;
  int64_t offset_ = 0;
  v1::FetchSequenceResponse message_;
  std::optional<IdleTimer> timer_;
  // Recursive because TryCancel may run OnDone before it returns, on the same thread.
  std::recursive_mutex context_mutex_;
  grpc::CallbackServerContext* context_;  // null once gRPC is done with it
  std::shared_ptr<FetchStream> self_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_FETCH_STREAM_H_
