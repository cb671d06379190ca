// A stored sequence is immutable, so an append builds its longer successor and swaps it in.
#include "server/rpc/put_stream.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <utility>
#include <vector>

#include "kernels/base/status_macros.h"
#include "server/rpc/field_path.h"
#include "server/rpc/resource_to_proto.h"
#include "server/rpc/store_from_proto.h"

namespace kvern::rpc {
namespace {

enum class Side : uint8_t { kKeys, kValues };

std::vector<KvRef> Views(const memory::StoredSequence& sequence, Side side) {
  const int64_t layers = static_cast<int64_t>(sequence.Info().layer_indices.size());
  std::vector<KvRef> views;
  views.reserve(layers);
  for (int64_t slot = 0; slot < layers; ++slot) {
    views.push_back(side == Side::kKeys ? sequence.Keys(slot) : sequence.Values(slot));
  }
  return views;
}

absl::Status WantsHeader() {
  return BadField(FieldPath("header"), "got a chunk or nothing first, want the header");
}

absl::Status HadHeader() {
  return BadField(FieldPath("header"), "got a second one, want chunks after the first");
}

template <class Response>
absl::Status Answer(const memory::StoredSequence& sequence, grpc::ByteBuffer* wire) {
  Response response;
  ToProto(sequence, StoredState{}, response.mutable_sequence());
  bool owned = false;
  const grpc::Status made = grpc::SerializationTraits<Response>::Serialize(response, wire, &owned);
  KVERN_CHECK(made.ok());
  return absl::OkStatus();
}

}  // namespace

PutStream::PutStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
                     grpc::ByteBuffer* response)
    : ReadStream(deps.Scope(engine::Rpc::kPutSequence, *context), context),
      deps_(deps),
      response_(response) {}

absl::StatusOr<PutStream::Next> PutStream::OnMessage(grpc::ByteBuffer* message) {
  v1::StoredSequence header;
  KVERN_ASSIGN_OR_RETURN(const UploadMessage upload, ReadUpload(message, &header));
  if (upload.kind == UploadMessage::Kind::kHeader) {
    if (upload_.has_value()) return HadHeader();
    KVERN_RETURN_IF_ERROR(OnHeader(header));
    return Next::kRead;
  }
  if (!upload_.has_value()) return WantsHeader();
  KVERN_RETURN_IF_ERROR(upload_->Add(upload.chunk));
  return Next::kRead;
}

absl::Status PutStream::OnHeader(const v1::StoredSequence& header) {
  KVERN_ASSIGN_OR_RETURN(const std::string model_id, ModelOf(header));
  KVERN_ASSIGN_OR_RETURN(const auto model, deps_.engine->Models().Find(model_id));
  KVERN_ASSIGN_OR_RETURN(memory::StoredInfo info,
                         FromProto(header, model->spec, deps_.GetLimits()));
  KVERN_RETURN_IF_ERROR(deps_.engine->StoreHealth());
  KVERN_ASSIGN_OR_RETURN(sequence_, deps_.engine->Store().AllocateDense(std::move(info)));
  upload_.emplace(DenseBytes(Views(*sequence_, Side::kKeys), *sequence_),
                  DenseBytes(Views(*sequence_, Side::kValues), *sequence_));
  return absl::OkStatus();
}

void PutStream::OnComplete() { End(Publish()); }

absl::Status PutStream::Publish() {
  if (!upload_.has_value()) return WantsHeader();
  KVERN_RETURN_IF_ERROR(upload_->CheckComplete());
  KVERN_RETURN_IF_ERROR(deps_.engine->Store().Publish(sequence_, memory::Store::Commit::kNew,
                                                      /*replace_epoch=*/0));
  return Answer<v1::PutSequenceResponse>(*sequence_, response_);
}

AppendStream::AppendStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
                           grpc::ByteBuffer* response)
    : ReadStream(deps.Scope(engine::Rpc::kAppendSequence, *context), context),
      deps_(deps),
      response_(response) {}

absl::StatusOr<AppendStream::Next> AppendStream::OnMessage(grpc::ByteBuffer* message) {
  v1::AppendHeader header;
  KVERN_ASSIGN_OR_RETURN(const UploadMessage upload, ReadUpload(message, &header));
  if (upload.kind == UploadMessage::Kind::kHeader) {
    if (upload_.has_value()) return HadHeader();
    KVERN_RETURN_IF_ERROR(OnHeader(header));
    return Next::kRead;
  }
  if (!upload_.has_value()) return WantsHeader();
  KVERN_RETURN_IF_ERROR(upload_->Add(upload.chunk));
  return Next::kRead;
}

absl::Status AppendStream::OnHeader(const v1::AppendHeader& header) {
  KVERN_ASSIGN_OR_RETURN(const Append append, FromProto(header, deps_.GetLimits()));
  KVERN_ASSIGN_OR_RETURN(before_, deps_.engine->Store().Peek(append.id));
  KVERN_ASSIGN_OR_RETURN(memory::StoredInfo info, AfterAppend(*before_, append, deps_.GetLimits()));
  KVERN_RETURN_IF_ERROR(deps_.engine->StoreHealth());
  KVERN_ASSIGN_OR_RETURN(sequence_, deps_.engine->Store().AllocateDense(std::move(info)));
  upload_.emplace(DenseBytes(Views(*sequence_, Side::kKeys), *sequence_, append.tokens),
                  DenseBytes(Views(*sequence_, Side::kValues), *sequence_, append.tokens));
  return absl::OkStatus();
}

void AppendStream::OnComplete() {
  // The copy may be as large as the store: not on gRPC's thread.
  const absl::Status posted =
      deps_.worker->Post([self = Shared<AppendStream>()] { self->End(self->CopyAndPublish()); });
  if (!posted.ok()) End(posted);
}

absl::Status AppendStream::CopyAndPublish() {
  if (!upload_.has_value()) return WantsHeader();
  KVERN_RETURN_IF_ERROR(upload_->CheckComplete());
  if (deps_.engine->Store().OnDevice()) {
    KVERN_RETURN_IF_ERROR(deps_.engine->CopyStored(
        *before_, *sequence_, Deadline(absl::Seconds(deps_.GetLimits().default_deadline_seconds))));
  } else {
    CopyTokens(Views(*before_, Side::kKeys), Views(*sequence_, Side::kKeys));
    CopyTokens(Views(*before_, Side::kValues), Views(*sequence_, Side::kValues));
  }
  KVERN_RETURN_IF_ERROR(deps_.engine->Store().Publish(sequence_, memory::Store::Commit::kReplace,
                                                      before_->Info().epoch));
  return Answer<v1::AppendSequenceResponse>(*sequence_, response_);
}

}  // namespace kvern::rpc
