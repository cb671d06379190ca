// A digest that is known ends the stream before its bytes come; no byte is buffered beyond the
// limit.
#include "server/rpc/import_stream.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/dense_upload.h"
#include "server/rpc/field_path.h"
#include "server/rpc/request_hash.h"
#include "server/rpc/resource_to_proto.h"

namespace kvern::rpc {
namespace {

constexpr size_t kSha256Bytes = 32;

}  // namespace

ImportStream::ImportStream(const ServiceDeps& deps, const grpc::CallbackServerContext* context,
                           v1::ImportCalibrationResponse* response)
    : ReadStream(deps.Scope(engine::Rpc::kImportCalibration, *context), context),
      deps_(deps),
      response_(response),
      share_(deps.import_bytes) {}

absl::Status ImportStream::OnDigest(const std::string& sha256) {
  if (sha256.empty()) return absl::OkStatus();
  if (sha256.size() != kSha256Bytes) {
    return BadField(FieldPath("sha256"),
                    absl::StrCat("got ", sha256.size(), " bytes, want ", kSha256Bytes, " or none"));
  }
  sha256_ = sha256;
  existed_ = deps_.engine->Models().Has(absl::BytesToHexString(sha256));
  return absl::OkStatus();
}

absl::StatusOr<ImportStream::Next> ImportStream::OnMessage(v1::ImportCalibrationRequest* message) {
  if (first_) {
    first_ = false;
    KVERN_RETURN_IF_ERROR(OnDigest(message->sha256()));
  }
  if (existed_) return Next::kComplete;
  const int64_t bytes = static_cast<int64_t>(message->data().size());
  KVERN_RETURN_IF_ERROR(CheckCount(FieldPath("data"), bytes, kMaxChunkBytes, "bytes"));
  const int64_t limit = deps_.GetLimits().calibration_bytes;
  if (bytes > limit - static_cast<int64_t>(bytes_.size())) {
    return WithField(
        absl::ResourceExhaustedError(absl::StrCat(
            "data: got more than ", limit, " bytes, want at most that (--calibration-bytes)")),
        "data");
  }
  KVERN_RETURN_IF_ERROR(share_.Take(bytes));
  bytes_ += message->data();
  return Next::kRead;
}

void ImportStream::OnComplete() {
  if (existed_) {
    End(AnswerExisting());
    return;
  }
  // Hashing and parsing a gigabyte: not on gRPC's thread.
  const absl::Status posted =
      deps_.worker->Post([self = Shared<ImportStream>()] { self->End(self->Import()); });
  if (!posted.ok()) End(posted);
}

absl::Status ImportStream::AnswerExisting() {
  KVERN_ASSIGN_OR_RETURN(const engine::CalibrationArtifact artifact,
                         deps_.engine->Models().FindCalibration(absl::BytesToHexString(sha256_)));
  ToProto(artifact, response_->mutable_calibration());
  response_->set_existed(true);
  return absl::OkStatus();
}

absl::Status ImportStream::Import() {
  if (!sha256_.empty()) {
    const std::string digest = Sha256(bytes_);
    if (digest != sha256_) {
      return BadField(FieldPath("sha256"),
                      absl::StrCat("got ", absl::BytesToHexString(sha256_), " for bytes of ",
                                   absl::BytesToHexString(digest), ", want their own"));
    }
  }
  bool existed = false;
  KVERN_ASSIGN_OR_RETURN(const engine::CalibrationArtifact artifact,
                         deps_.engine->Models().Import(std::move(bytes_), &existed));
  ToProto(artifact, response_->mutable_calibration());
  response_->set_existed(existed);
  return absl::OkStatus();
}

}  // namespace kvern::rpc
