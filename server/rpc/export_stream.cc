// The file is a moment's: queries that are observed while it leaves are not in it.
#include "server/rpc/export_stream.h"

#include <algorithm>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/engine/calibration_export.h"
#include "server/engine/calibration_file.h"
#include "server/rpc/field_path.h"
#include "server/rpc/name_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr size_t kSendBytes = size_t{1} << 20;

}  // namespace

ExportStream::ExportStream(const ServiceDeps& deps, grpc::CallbackServerContext* context)
    : deps_(deps),
      scope_(deps.Scope(engine::Rpc::kExportCalibration, *context)),
      share_(deps.import_bytes),
      context_(context) {}

void ExportStream::Begin(const v1::ExportCalibrationRequest& request) {
  self_ = shared_from_this();
  absl::Status status = Open(request);
  if (status.ok()) {
    status = deps_.worker->Post([self = shared_from_this()] {
      const absl::Status made = self->Make();
      if (made.ok()) {
        self->SendFirst();
      } else {
        self->End(made);
      }
    });
  }
  if (!status.ok()) End(status);
}

absl::Status ExportStream::Open(const v1::ExportCalibrationRequest& request) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.model(), Collection::kModels, FieldPath("model")));
  format_ = request.format();
  if (format_ != engine::kCentresFormat && format_ != engine::kMomentsFormat) {
    return BadField(FieldPath("format"),
                    absl::StrCat("got ", Quoted(format_), ", want ", engine::kCentresFormat, " or ",
                                 engine::kMomentsFormat));
  }
  KVERN_ASSIGN_OR_RETURN(model_, deps_.engine->Models().Find(id));
  observed_ = deps_.engine->Models().Observed(*model_);
  if (observed_ == nullptr) {
    return WithReason(absl::FailedPreconditionError("model: got one without observed queries, "
                                                    "want ObserveQueries first"),
                      "OBSERVED_TOO_FEW");
  }
  const int64_t bytes = pipeline::QueryStatistics::ArtifactBytes(model_->spec);
  const int64_t limit = deps_.GetLimits().calibration_bytes;
  if (bytes > limit) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat(
            "calibration: got ", bytes, " bytes, want at most ", limit, " (--calibration-bytes)")),
        "QUOTA");
  }
  return share_.Take(2 * bytes);  // as numbers, and as a file
}

absl::Status ExportStream::Make() {
  try {
    KVERN_ASSIGN_OR_RETURN(const auto snapshot, observed_->Export());
    KVERN_ASSIGN_OR_RETURN(file_, engine::ExportCalibration(*model_, snapshot, format_));
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("calibration: got no memory for it, want more of it");
  }
}

void ExportStream::SendFirst() {
  // From here on: before, it is the client that waits.
  timer_.emplace(absl::Seconds(deps_.GetLimits().idle_stream_seconds),
                 [weak = std::weak_ptr<ExportStream>(self_)] {
                   const std::shared_ptr<ExportStream> stream = weak.lock();
                   if (stream != nullptr) stream->CancelSilentClient();
                 });
  SendNext();
}

void ExportStream::SendNext() {
  const size_t bytes = std::min(kSendBytes, file_.size() - offset_);
  if (bytes == 0) {
    End(absl::OkStatus());
    return;
  }
  message_.set_data(file_.data() + offset_, bytes);
  offset_ += bytes;
  StartWrite(&message_);
}

void ExportStream::OnWriteDone(bool ok) {
  if (!ok) {
    End(absl::CancelledError("got a client that left, want one that reads to the end"));
    return;
  }
  timer_->Touch();
  SendNext();
}

// A write that flow control holds back ends only with the call, so that is what ends.
void ExportStream::CancelSilentClient() {
  const std::lock_guard<std::recursive_mutex> lock(context_mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

void ExportStream::OnDone() {
  {
    const std::lock_guard<std::recursive_mutex> lock(context_mutex_);
    context_ = nullptr;
  }
  if (timer_.has_value()) timer_->Stop();
  self_.reset();  // the last line: `this` may be gone
}

}  // namespace kvern::rpc
