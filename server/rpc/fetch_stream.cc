// The next chunk is made when the last one left, so a call holds one chunk whatever it sends.
#include "server/rpc/fetch_stream.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "kernels/base/status_macros.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/resource_to_proto.h"
#include "server/rpc/response_limit.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kSendBytes = int64_t{1} << 20;

template <class T>
std::string AsBytes(const std::vector<T>& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(T));
}

// Of K, and of V as much.
int64_t DenseBytesOf(const memory::StoredInfo& info) {
  return static_cast<int64_t>(info.layer_indices.size()) * info.kv_heads * info.num_tokens *
         info.head_dim * SizeOf(info.dtype);
}

}  // namespace

FetchStream::FetchStream(const ServiceDeps& deps, grpc::CallbackServerContext* context)
    : deps_(deps),
      scope_(deps.Scope(engine::Rpc::kFetchSequence, *context)),
      deadline_(DeadlineOf(*context, absl::Seconds(deps.GetLimits().default_deadline_seconds))),
      share_(deps.decode_bytes),
      context_(context) {}

void FetchStream::Begin(const v1::FetchSequenceRequest& request) {
  self_ = shared_from_this();
  const absl::Status opened = Open(request);
  if (!opened.ok()) {
    End(opened);
    return;
  }
  if (!decode_) {
    SendHeader();
    return;
  }
  const absl::Status posted = deps_.worker->Post([self = shared_from_this()] {
    const absl::Status decoded = self->Decode();
    if (decoded.ok()) {
      self->SendHeader();
    } else {
      self->End(decoded);
    }
  });
  if (!posted.ok()) End(posted);
}

absl::Status FetchStream::Open(const v1::FetchSequenceRequest& request) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.name(), Collection::kSequences, FieldPath("name")));
  KVERN_ASSIGN_OR_RETURN(sequence_, deps_.engine->Store().Peek(id));
  const memory::StoredInfo& info = sequence_->Info();
  KVERN_RETURN_IF_ERROR(deps_.engine->StoreHealth());
  decode_ = request.decode() && sequence_->Packed();
  if (sequence_->Packed() && !decode_) {
    parts_ = {{v1::Chunk::PART_PACKED, static_cast<int64_t>(sequence_->Blocks().size())}};
    return absl::OkStatus();
  }
  parts_ = {{v1::Chunk::PART_K, DenseBytesOf(info)}, {v1::Chunk::PART_V, DenseBytesOf(info)}};
  if (decode_) return share_.Take(2 * DenseBytesOf(info));
  std::vector<KvRef> keys, values;
  for (size_t slot = 0; slot < info.layer_indices.size(); ++slot) {
    keys.push_back(sequence_->Keys(static_cast<int64_t>(slot)));
    values.push_back(sequence_->Values(static_cast<int64_t>(slot)));
  }
  keys_.emplace(std::move(keys), *sequence_);
  values_.emplace(std::move(values), *sequence_);
  return absl::OkStatus();
}

absl::Status FetchStream::Decode() {
  KVERN_RETURN_IF_ERROR(
      deps_.engine->DecodeStored(*sequence_, deadline_, &decoded_k_, &decoded_v_));
  const size_t want = static_cast<size_t>(DenseBytesOf(sequence_->Info()));
  KVERN_CHECK(decoded_k_.size() == want && decoded_v_.size() == want);
  return absl::OkStatus();
}

void FetchStream::SendHeader() {
  v1::FetchHeader* header = message_.mutable_header();
  ToProto(*sequence_, StoredState{}, header->mutable_sequence());
  const memory::StoredInfo& info = sequence_->Info();
  if (parts_.front().part == v1::Chunk::PART_PACKED) {
    header->set_packed_table(AsBytes(info.table));
    header->set_mean_key(AsBytes(info.mean_key));
    header->set_packed_bytes(parts_.front().bytes);
  } else {
    header->set_dense_bytes(parts_.front().bytes);
  }
  if (const absl::Status fits = CheckSendable(message_, deps_.GetLimits()); !fits.ok()) {
    End(fits);
    return;
  }
  deps_.engine->Store().Touch(info.id);
  // From here on: before, it is the client that waits.
  timer_.emplace(absl::Seconds(deps_.GetLimits().idle_stream_seconds),
                 [weak = std::weak_ptr<FetchStream>(self_)] {
                   const std::shared_ptr<FetchStream> stream = weak.lock();
                   if (stream != nullptr) stream->CancelSilentClient();
                 });
  StartWrite(&message_);
}

void FetchStream::SendNext() {
  while (part_ < parts_.size() && offset_ == parts_[part_].bytes) {
    ++part_;
    offset_ = 0;
  }
  if (part_ == parts_.size()) {
    End(absl::OkStatus());
    return;
  }
  const int64_t bytes = std::min(kSendBytes, parts_[part_].bytes - offset_);
  v1::Chunk* chunk = message_.mutable_chunk();
  chunk->set_part(parts_[part_].part);
  chunk->set_offset(offset_);
  chunk->mutable_data()->resize(bytes);
  const absl::Status read =
      ReadPart(parts_[part_].part, offset_,
               std::as_writable_bytes(std::span(chunk->mutable_data()->data(), bytes)));
  if (!read.ok()) {
    End(read);
    return;
  }
  offset_ += bytes;
  StartWrite(&message_);
}

absl::Status FetchStream::ReadPart(v1::Chunk::Part part, int64_t offset,
                                   std::span<std::byte> bytes) const {
  if (part == v1::Chunk::PART_PACKED) {
    return sequence_->CopyOut(sequence_->Blocks().data() + offset, bytes);
  }
  if (!decode_) return (part == v1::Chunk::PART_K ? *keys_ : *values_).Read(offset, bytes);
  const std::vector<std::byte>& from = part == v1::Chunk::PART_K ? decoded_k_ : decoded_v_;
  std::memcpy(bytes.data(), from.data() + offset, bytes.size());
  return absl::OkStatus();
}

void FetchStream::OnWriteDone(bool ok) {
  if (!ok) {
    End(absl::CancelledError("got a client that left, want one that reads to the end"));
    return;
  }
  timer_->Touch();
  SendNext();
}

// A write that flow control holds back ends only with the call, so that is what ends.
void FetchStream::CancelSilentClient() {
  const std::lock_guard<std::recursive_mutex> lock(context_mutex_);
  if (context_ != nullptr) context_->TryCancel();
}

void FetchStream::End(const absl::Status& status) { Finish(scope_.End(status)); }

void FetchStream::OnDone() {
  {
    const std::lock_guard<std::recursive_mutex> lock(context_mutex_);
    context_ = nullptr;
  }
  if (timer_.has_value()) timer_->Stop();
  self_.reset();  // the last line: `this` may be gone
}

}  // namespace kvern::rpc
