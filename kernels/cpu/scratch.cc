// A bump allocator that merges its pieces between problems, so that a steady load allocates
// nothing.
#include "kernels/cpu/scratch.h"

#include <algorithm>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvern::cpu {

void Scratch::Free::operator()(std::byte* data) const {
  ::operator delete (data, std::align_val_t{kAlign});
}

bool Scratch::AddPiece(int64_t bytes) {
  void* data = ::operator new (static_cast<size_t>(bytes), std::align_val_t{kAlign}, std::nothrow);
  if (data == nullptr) return false;
  Piece piece;
  piece.data.reset(static_cast<std::byte*>(data));
  piece.bytes = bytes;
  pieces_.push_back(std::move(piece));
  used_bytes_ = 0;
  return true;
}

void Scratch::Reset() {
  if (pieces_.size() > 1) {
    int64_t total = 0;
    for (const Piece& piece : pieces_) total += piece.bytes;
    pieces_.clear();
    AddPiece(total);  // failing is fine: Take tries again
  }
  used_bytes_ = 0;
  missing_bytes_ = 0;
}

void* Scratch::TakeBytes(int64_t bytes) {
  constexpr int64_t kSmallestPiece = int64_t{64} << 10;
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  if (pieces_.empty() || pieces_.back().bytes - used_bytes_ < bytes) {
    if (!AddPiece(std::max(bytes, kSmallestPiece))) {
      missing_bytes_ += bytes;
      return nullptr;
    }
  }
  std::byte* start = pieces_.back().data.get() + used_bytes_;
  used_bytes_ += bytes;
  return start;
}

absl::Status Scratch::Taken() const {
  if (missing_bytes_ == 0) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("scratch memory: could not get ", missing_bytes_, " bytes"));
}

}  // namespace kvern::cpu
