// Streams are one header and chunks of at most 1 MiB; a broken write means that Finish knows why.
#include "client/cpp/upload.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/chunk_writer.h"
#include "client/cpp/status_details.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "kernels/base/status_macros.h"
#include "kvern/v1/model.grpc.pb.h"
#include "kvern/v1/store.grpc.pb.h"
#include "openssl/sha.h"

namespace kvern::client {
namespace {

constexpr size_t kChunkBytes = ChunkWriter::kMaxBytes;

const char* Chars(std::span<const std::byte> bytes) {
  return reinterpret_cast<const char*>(bytes.data());
}

// Calls send(piece, offset) until it fails or the bytes end.
template <class Send>
bool ForEachPiece(std::span<const std::byte> bytes, Send&& send) {
  for (size_t at = 0; at < bytes.size(); at += kChunkBytes) {
    if (!send(bytes.subspan(at, std::min(kChunkBytes, bytes.size() - at)), at)) return false;
  }
  return true;
}

absl::Status Write(ChunkWriter* writer, const google::protobuf::MessageLite& header,
                   const DenseCache& cache, const Progress& progress) {
  const int64_t total = std::ssize(cache.k) + std::ssize(cache.v);
  int64_t done = 0;
  const auto write_part = [&](v1::Chunk::Part part, std::span<const std::byte> plane) {
    return ForEachPiece(plane, [&](std::span<const std::byte> piece, size_t offset) {
      if (!writer->WriteChunk(part, static_cast<int64_t>(offset), piece)) return false;
      done += std::ssize(piece);
      if (progress) progress(done, total);
      return true;
    });
  };
  if (writer->WriteHeader(header) && write_part(v1::Chunk::PART_K, cache.k)) {
    write_part(v1::Chunk::PART_V, cache.v);
  }
  return writer->Finish();
}

absl::Status TakeChunk(const v1::Chunk& chunk, FetchedSequence* fetched) {
  std::string* part = chunk.part() == v1::Chunk::PART_K        ? &fetched->k
                      : chunk.part() == v1::Chunk::PART_V      ? &fetched->v
                      : chunk.part() == v1::Chunk::PART_PACKED ? &fetched->packed
                                                               : nullptr;
  if (part == nullptr || chunk.offset() != std::ssize(*part)) {
    return absl::DataLossError(absl::StrCat("fetch: got a chunk of part ", chunk.part(),
                                            " at byte ", chunk.offset(),
                                            ", want parts without gaps"));
  }
  part->append(chunk.data());
  return absl::OkStatus();
}

absl::Status CheckFetched(const FetchedSequence& fetched) {
  if (std::ssize(fetched.k) == fetched.header.dense_bytes() &&
      std::ssize(fetched.v) == fetched.header.dense_bytes() &&
      std::ssize(fetched.packed) == fetched.header.packed_bytes()) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat("fetch: got ", fetched.k.size(), " + ", fetched.v.size(),
                                          " dense and ", fetched.packed.size(),
                                          " packed bytes, want ", fetched.header.dense_bytes(),
                                          " each and ", fetched.header.packed_bytes()));
}

}  // namespace

absl::StatusOr<v1::StoredSequence> PutSequence(const Client& client,
                                               const v1::StoredSequence& header,
                                               const DenseCache& cache, const Progress& progress) {
  v1::PutSequenceResponse response;
  ChunkWriter writer(client, ChunkWriter::Call::kPut, &response);
  v1::StoredSequence first = header;
  first.set_num_tokens(cache.tokens);
  KVERN_RETURN_IF_ERROR(Write(&writer, first, cache, progress));
  return std::move(*response.mutable_sequence());
}

absl::StatusOr<v1::StoredSequence> AppendSequence(const Client& client,
                                                  const v1::AppendHeader& header,
                                                  const DenseCache& tokens,
                                                  const Progress& progress) {
  v1::AppendSequenceResponse response;
  ChunkWriter writer(client, ChunkWriter::Call::kAppend, &response);
  v1::AppendHeader first = header;
  first.set_num_tokens(tokens.tokens);
  KVERN_RETURN_IF_ERROR(Write(&writer, first, tokens, progress));
  return std::move(*response.mutable_sequence());
}

absl::StatusOr<FetchedSequence> FetchSequence(const Client& client, const std::string& name,
                                              FetchForm form, const Progress& progress) {
  const auto stub = v1::StoreService::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::FetchSequenceRequest request;
  request.set_name(name);
  request.set_decode(form == FetchForm::kDecoded);
  const auto reader = stub->FetchSequence(&context, request);
  FetchedSequence fetched;
  absl::Status broken;
  int64_t done = 0;
  v1::FetchSequenceResponse message;
  while (broken.ok() && reader->Read(&message)) {
    if (message.has_header()) {
      fetched.header = std::move(*message.mutable_header());
      continue;
    }
    broken = TakeChunk(message.chunk(), &fetched);
    done += std::ssize(message.chunk().data());
    if (progress) progress(done, 2 * fetched.header.dense_bytes() + fetched.header.packed_bytes());
  }
  if (!broken.ok()) context.TryCancel();
  const grpc::Status finished = reader->Finish();
  KVERN_RETURN_IF_ERROR(broken);
  KVERN_RETURN_IF_ERROR(FromGrpc(finished));
  KVERN_RETURN_IF_ERROR(CheckFetched(fetched));
  return fetched;
}

std::string CalibrationName(std::span<const std::byte> artifact) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(artifact.data()), artifact.size(), digest);
  const absl::string_view raw(reinterpret_cast<const char*>(digest), sizeof(digest));
  return absl::StrCat("calibrations/", absl::BytesToHexString(raw));
}

absl::StatusOr<std::string> ImportCalibration(const Client& client,
                                              std::span<const std::byte> artifact,
                                              const Progress& progress) {
  const std::string name = CalibrationName(artifact);
  KVERN_ASSIGN_OR_RETURN(const v1::ListModelsResponse known, client.ListModels());
  for (const v1::Calibration& calibration : known.calibrations()) {
    if (calibration.name() == name) return name;
  }
  const auto stub = v1::ModelService::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ImportCalibrationResponse response;
  const auto writer = stub->ImportCalibration(&context, &response);
  const std::string hex = name.substr(name.find('/') + 1);
  const bool sent = ForEachPiece(artifact, [&](std::span<const std::byte> piece, size_t offset) {
    v1::ImportCalibrationRequest request;
    if (offset == 0) request.set_sha256(absl::HexStringToBytes(hex));
    request.set_data(Chars(piece), piece.size());
    if (!writer->Write(request)) return false;
    if (progress) progress(static_cast<int64_t>(offset) + std::ssize(piece), std::ssize(artifact));
    return true;
  });
  if (sent) writer->WritesDone();
  KVERN_RETURN_IF_ERROR(FromGrpc(writer->Finish()));
  return response.calibration().name();
}

}  // namespace kvern::client
