// Streams are objects of their own; the rest answers from the store's index.
#include "server/rpc/store_service.h"

#include <memory>
#include <string>

#include "kernels/base/status_macros.h"
#include "server/rpc/fetch_stream.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/put_stream.h"
#include "server/rpc/resource_to_proto.h"

namespace kvern::rpc {

grpc::ServerReadReactor<grpc::ByteBuffer>* StoreService::PutSequence(
    grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  const auto stream = std::make_shared<PutStream>(deps_, context, response);
  stream->Begin(absl::Seconds(deps_.GetLimits().idle_stream_seconds));
  return stream.get();  // owns itself until OnDone
}

grpc::ServerReadReactor<grpc::ByteBuffer>* StoreService::AppendSequence(
    grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  const auto stream = std::make_shared<AppendStream>(deps_, context, response);
  stream->Begin(absl::Seconds(deps_.GetLimits().idle_stream_seconds));
  return stream.get();
}

grpc::ServerWriteReactor<v1::FetchSequenceResponse>* StoreService::FetchSequence(
    grpc::CallbackServerContext* context, const v1::FetchSequenceRequest* request) {
  const auto stream = std::make_shared<FetchStream>(deps_, context);
  stream->Begin(*request);
  return stream.get();
}

grpc::ServerUnaryReactor* StoreService::GetSequence(grpc::CallbackServerContext* context,
                                                    const v1::GetSequenceRequest* request,
                                                    v1::GetSequenceResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kGetSequence, *context),
                  [&] { return Get(*request, response); });
}

grpc::ServerUnaryReactor* StoreService::ListSequences(grpc::CallbackServerContext* context,
                                                      const v1::ListSequencesRequest*,
                                                      v1::ListSequencesResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kListSequences, *context), [&] {
    memory::Store& store = deps_.engine->Store();
    for (const auto& sequence : store.List()) {
      const StoredState state{.released = store.IsReleased(sequence->Info().id),
                              .detail = Detail::kBrief};
      ToProto(*sequence, state, response->add_sequences());
    }
    response->set_capacity_bytes(store.CapacityBytes());
    response->set_used_bytes(store.UsedBytes());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* StoreService::DeleteSequence(grpc::CallbackServerContext* context,
                                                       const v1::DeleteSequenceRequest* request,
                                                       v1::DeleteSequenceResponse*) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kDeleteSequence, *context), [&] {
    const auto id = ParseName(request->name(), Collection::kSequences, FieldPath("name"));
    if (id.ok()) deps_.engine->Store().Delete(*id);
    return id.status();
  });
}

absl::Status StoreService::Get(const v1::GetSequenceRequest& request,
                               v1::GetSequenceResponse* response) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.name(), Collection::kSequences, FieldPath("name")));
  memory::Store& store = deps_.engine->Store();
  const bool released = store.IsReleased(id);
  KVERN_ASSIGN_OR_RETURN(const std::shared_ptr<memory::StoredSequence> sequence, store.Peek(id));
  ToProto(*sequence, StoredState{.released = released, .detail = Detail::kFull},
          response->mutable_sequence());
  return absl::OkStatus();
}

}  // namespace kvern::rpc
