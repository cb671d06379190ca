// Three verbs: FromProto, Compress, ToProto; everything else here is about who owns what until
// when.
#include "server/rpc/compression_service.h"

#include <google/protobuf/arena.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/compress_from_proto.h"
#include "server/rpc/compress_to_proto.h"
#include "server/rpc/request_hash.h"

namespace kvern::rpc {
namespace {

// What one call needs until its last user lets go: its messages in one arena, whose first block is
// part of it and enough for most calls.
struct CallArena {
  static constexpr size_t kFirstBytes = size_t{32} << 10;

  CallArena() : arena(first_block, sizeof(first_block)) {}

  alignas(8) char first_block[kFirstBytes];
  google::protobuf::Arena arena;
  v1::CompressCacheRequest* const request =
      google::protobuf::Arena::CreateMessage<v1::CompressCacheRequest>(&arena);
  v1::CompressCacheResponse* const response =
      google::protobuf::Arena::CreateMessage<v1::CompressCacheResponse>(&arena);
  std::atomic<bool> cancelled = false;
};

class CompressMessages final
    : public grpc::MessageHolder<v1::CompressCacheRequest, v1::CompressCacheResponse>,
      public Recycled<CompressMessages> {
 public:
  CompressMessages() : arena_(std::allocate_shared<CallArena>(RecyclingAllocator<CallArena>())) {
    set_request(arena_->request);
    set_response(arena_->response);
  }
  void Release() override { delete this; }
  std::shared_ptr<v1::CompressCacheRequest> SharedRequest() const {
    return {arena_, arena_->request};
  }
  std::shared_ptr<std::atomic<bool>> Cancelled() const { return {arena_, &arena_->cancelled}; }

 private:
  const std::shared_ptr<CallArena> arena_;
};

absl::StatusOr<engine::CompressJob> MakeJob(
    engine::Engine* engine, const std::shared_ptr<v1::CompressCacheRequest>& request) {
  KVERN_ASSIGN_OR_RETURN(const std::string model_id, ModelOf(*request));
  KVERN_ASSIGN_OR_RETURN(const auto model, engine->Models().Find(model_id));
  // Before FromProto, which takes the address of bytes that hashing sets aside.
  const uint64_t hash = request->request_id().empty() ? 0 : HashWithoutTensors(request.get());
  KVERN_ASSIGN_OR_RETURN(
      engine::CompressJob job,
      FromProto(request, Edge{.limits = engine->GetLimits(), .model = &model->spec}));
  job.request_hash = hash;
  return job;
}

// One call in flight. The engine calls back exactly once, and gRPC frees the call only after that.
class CompressCall final : public grpc::ServerUnaryReactor, public Recycled<CompressCall> {
 public:
  CompressCall(RpcScope scope, v1::CompressCacheResponse* response,
               std::shared_ptr<std::atomic<bool>> cancelled)
      : scope_(std::move(scope)), response_(response), cancelled_(std::move(cancelled)) {}

  void Start(engine::Engine* engine, engine::CompressJob job) {
    job.peer = scope_.Peer();
    job.cancelled = cancelled_;
    engine->Compress(std::move(job), [this](absl::StatusOr<engine::CompressResult> result) {
      if (!result.ok()) {
        End(result.status());
        return;
      }
      ToProto(*result, response_);
      scope_.SetCompress(Summarize(*result));
      End(absl::OkStatus());
    });
  }
  // `this` may be gone when it returns.
  void End(const absl::Status& status) { Finish(scope_.End(status)); }

 private:
  void OnCancel() override { cancelled_->store(true); }
  void OnDone() override { delete this; }

  RpcScope scope_;
  v1::CompressCacheResponse* const response_;
  const std::shared_ptr<std::atomic<bool>> cancelled_;
};

}  // namespace

grpc::MessageHolder<v1::CompressCacheRequest, v1::CompressCacheResponse>*
CompressAllocator::AllocateMessages() {
  return new CompressMessages;
}

CompressionService::CompressionService(const ServiceDeps& deps) : deps_(deps) {
  SetMessageAllocatorFor_CompressCache(&allocator_);
}

grpc::ServerUnaryReactor* CompressionService::CompressCache(grpc::CallbackServerContext* context,
                                                            const v1::CompressCacheRequest* request,
                                                            v1::CompressCacheResponse* response) {
  RpcScope scope = deps_.Scope(engine::Rpc::kCompressCache, *context);
  scope.SetRequestId(request->request_id());
  const auto* messages = static_cast<const CompressMessages*>(context->GetRpcAllocatorState());
  // Deletes itself in OnDone.
  auto* call = new CompressCall(std::move(scope), response, messages->Cancelled());
  absl::StatusOr<engine::CompressJob> job = MakeJob(deps_.engine, messages->SharedRequest());
  if (!job.ok()) {
    call->End(job.status());
    return call;
  }
  job->deadline = DeadlineOf(*context, absl::Seconds(deps_.GetLimits().default_deadline_seconds));
  call->Start(deps_.engine, *std::move(job));
  return call;
}

grpc::ServerUnaryReactor* CompressionService::ReleaseSequences(
    grpc::CallbackServerContext* context, const v1::ReleaseSequencesRequest* request,
    v1::ReleaseSequencesResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kReleaseSequences, *context), [&] {
    const auto ids = FromProto(*request);
    if (!ids.ok()) return ids.status();
    response->set_released(static_cast<int32_t>(deps_.engine->Release(*ids)));
    return absl::OkStatus();
  });
}

}  // namespace kvern::rpc
