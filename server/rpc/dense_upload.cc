// Each chunk goes straight to its place: the next offset is the only one accepted.
#include "server/rpc/dense_upload.h"

#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

DenseUpload::DenseUpload(DenseBytes keys, DenseBytes values)
    : keys_{std::move(keys)}, values_{std::move(values)} {}

absl::Status DenseUpload::Add(const ChunkBytes& chunk) {
  const FieldPath path("chunk");
  if (chunk.part != v1::Chunk::PART_K && chunk.part != v1::Chunk::PART_V) {
    return BadField(path.Child("part"),
                    absl::StrCat("got ", static_cast<int>(chunk.part), ", want PART_K or PART_V"));
  }
  Part& part = chunk.part == v1::Chunk::PART_K ? keys_ : values_;
  if (chunk.offset != part.received_bytes) {
    return BadField(path.Child("offset"),
                    absl::StrCat("got ", chunk.offset, ", want ", part.received_bytes,
                                 ", right behind the last chunk"));
  }
  const int64_t bytes = chunk.Size();
  const FieldPath data = path.Child("data");
  KVERN_RETURN_IF_ERROR(CheckCount(data, bytes, kMaxChunkBytes, "bytes"));
  KVERN_RETURN_IF_ERROR(CheckCount(data, bytes, part.target.Size() - part.received_bytes,
                                   "bytes beyond those that came"));
  for (const std::span<const std::byte> piece : chunk.pieces) {
    KVERN_RETURN_IF_ERROR(part.target.Write(part.received_bytes, piece));
    part.received_bytes += std::ssize(piece);
  }
  return absl::OkStatus();
}

absl::Status DenseUpload::CheckComplete() const {
  for (const Part* part : {&keys_, &values_}) {
    if (part->received_bytes == part->target.Size()) continue;
    const char* name = part == &keys_ ? "PART_K" : "PART_V";
    return BadField(FieldPath("chunk"), absl::StrCat("got ", part->received_bytes, " bytes of ",
                                                     name, ", want ", part->target.Size()));
  }
  return absl::OkStatus();
}

}  // namespace kvern::rpc
