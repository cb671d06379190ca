// A message costs head_dim / 2 multiplications an element: too much for gRPC's threads.
#include "server/rpc/observe_stream.h"

#include <new>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/field_path.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/observe_from_proto.h"
#include "server/rpc/peer.h"
#include "server/rpc/request_hash.h"
#include "server/rpc/resource_to_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxRequestIdBytes = 128;

// Digest of the messages up to this one. Not deterministic over libraries of other languages, but a
// client that repeats a message sends the same bytes of its fields.
std::string Chain(const std::string& before, const v1::ObserveQueriesRequest& message) {
  return Sha256(absl::StrCat(before, Sha256(message.SerializeAsString())));
}

}  // namespace

ObserveStream::ObserveStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
                             v1::ObserveQueriesResponse* response, ObserveLog* log)
    : ReadStream(deps.Scope(engine::Rpc::kObserveQueries, *context), context),
      deps_(deps),
      response_(response),
      log_(log),
      peer_(PeerIdentity(context->peer())) {}

absl::StatusOr<ObserveStream::Next> ObserveStream::OnMessage(v1::ObserveQueriesRequest* message) {
  KVERN_RETURN_IF_ERROR(deps_.worker->Post(
      [self = Shared<ObserveStream>(), message] { self->Resume(self->TryCount(*message)); }));
  return Next::kLater;
}

absl::StatusOr<ObserveStream::Next> ObserveStream::TryCount(
    const v1::ObserveQueriesRequest& message) {
  try {
    return Count(message);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("queries: got no memory to count them, want more of it");
  }
}

absl::Status ObserveStream::Open(const v1::ObserveQueriesRequest& first) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(first.model(), Collection::kModels, FieldPath("model")));
  KVERN_RETURN_IF_ERROR(CheckCount(FieldPath("request_id"),
                                   static_cast<int64_t>(first.request_id().size()),
                                   kMaxRequestIdBytes, "bytes"));
  KVERN_ASSIGN_OR_RETURN(model_, deps_.engine->Models().Find(id));
  if (!first.request_id().empty()) {
    progress_ = log_->Open({peer_, first.request_id(), model_->life}, absl::Now());
  }
  return absl::OkStatus();
}

absl::StatusOr<ObserveStream::Next> ObserveStream::Count(const v1::ObserveQueriesRequest& message) {
  if (model_ == nullptr) {
    KVERN_RETURN_IF_ERROR(Open(message));
  } else if (!message.model().empty() || !message.request_id().empty()) {
    return BadField(FieldPath(message.model().empty() ? "request_id" : "model"),
                    "got it again, want it in the first message only");
  }
  KVERN_ASSIGN_OR_RETURN(const pipeline::QueryBatch batch, FromProto(message, model_->spec));
  // After the check: a client that sends nonsense makes no statistics. Anew for each message: a
  // stream ends where its model does.
  KVERN_ASSIGN_OR_RETURN(observed_, deps_.engine->Models().Observe(*model_));
  if (progress_ != nullptr) {
    KVERN_RETURN_IF_ERROR(AddOnce(message, batch));
  } else {
    Add(batch);
  }
  return Next::kRead;
}

void ObserveStream::Add(const pipeline::QueryBatch& batch) {
  observed_->Add(batch);
  response_->set_counted_tokens(response_->counted_tokens() + batch.tokens);
}

absl::Status ObserveStream::AddOnce(const v1::ObserveQueriesRequest& message,
                                    const pipeline::QueryBatch& batch) {
  const absl::MutexLock lock(&progress_->mutex);
  chain_ = Chain(chain_, message);
  ++messages_;
  if (messages_ > progress_->messages) {
    Add(batch);
    progress_->messages = messages_;
    progress_->chain = chain_;
    return absl::OkStatus();
  }
  response_->set_replayed_tokens(response_->replayed_tokens() + batch.tokens);
  if (messages_ < progress_->messages || chain_ == progress_->chain) return absl::OkStatus();
  return BadField(FieldPath("request_id"),
                  "got one under which other messages were counted, want a new one");
}

void ObserveStream::OnComplete() { End(Conclude()); }

absl::Status ObserveStream::Conclude() {
  if (observed_ == nullptr) {
    return BadField(FieldPath("model"), "got no message, want one or more");
  }
  if (progress_ != nullptr) {
    const absl::MutexLock lock(&progress_->mutex);
    if (messages_ < progress_->messages) {
      return BadField(FieldPath("request_id"),
                      absl::StrCat("got ", messages_, " messages under one whose stream had ",
                                   progress_->messages, ", want all of them, or a new one"));
    }
  }
  ToProto(observed_->Describe(engine::ObservedQueries::Detail::kBrief),
          response_->mutable_observed());
  return absl::OkStatus();
}

}  // namespace kvern::rpc
