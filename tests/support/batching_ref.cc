// Every op is counted, then done by ref.
#include "tests/support/batching_ref.h"

#include <sys/mman.h>

#include <cstring>

#include "kernels/base/status_macros.h"

namespace kvern::support {
namespace {

int64_t BytesOf(const KvRef& rows) {
  return rows.kv_heads * rows.tokens * rows.head_dim * SizeOf(rows.dtype);
}

void CopyRows(const KvRef& from, const KvRef& to) {
  for (int64_t row = 0; row < from.kv_heads * from.tokens; ++row) {
    const int64_t head = row / from.tokens, token = row % from.tokens;
    for (int64_t dim = 0; dim < from.head_dim; ++dim) {
      std::memcpy(to.Address(head, token) + dim * to.strides.dim,
                  from.Address(head, token) + dim * from.strides.dim, SizeOf(from.dtype));
    }
  }
}

}  // namespace

// Lets ops and copies at the device's memory for a scope.
class BatchingRef::Opened {
 public:
  explicit Opened(BatchingRef* device) : device_(*device) { Protect(PROT_READ | PROT_WRITE); }
  ~Opened() { Protect(PROT_NONE); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

 private:
  void Protect(int access) const {
    for (const auto& [data, bytes] : device_.memory_) {
      KVERN_CHECK(mprotect(data, static_cast<size_t>(bytes), access) == 0);
    }
  }
  BatchingRef& device_;
};

absl::StatusOr<Buffer> BatchingRef::Allocate(int64_t bytes) {
  if (bytes == 0) return Buffer();
  void* const data =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return absl::ResourceExhaustedError("scratch: full");
  memory_[static_cast<std::byte*>(data)] = bytes;
  return Buffer(static_cast<std::byte*>(data), bytes, &Free, this);
}

void BatchingRef::Free(void* self, std::byte* data, int64_t bytes) {
  static_cast<BatchingRef*>(self)->memory_.erase(data);
  munmap(data, static_cast<size_t>(bytes));
}

absl::Status BatchingRef::CopyIn(std::span<const std::byte> host, std::byte* device) {
  const Opened opened(this);
  return ref_.CopyIn(host, device);
}
absl::Status BatchingRef::CopyOut(const std::byte* device, std::span<std::byte> host) {
  const Opened opened(this);
  return ref_.CopyOut(device, host);
}
absl::Status BatchingRef::Zero(std::byte* device, int64_t bytes) {
  const Opened opened(this);
  return ref_.Zero(device, bytes);
}

absl::Status BatchingRef::Count(const std::string& op, size_t cohort) {
  ++calls[op];
  return before ? before(op, cohort) : absl::OkStatus();
}

absl::Status BatchingRef::RowNorms(std::span<const RowNormsArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("RowNorms", cohort.size()));
  const Opened opened(this);
  return ref_.RowNorms(cohort);
}
absl::Status BatchingRef::TriAttention(std::span<const TriAttentionArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("TriAttention", cohort.size()));
  const Opened opened(this);
  return ref_.TriAttention(cohort);
}
absl::Status BatchingRef::ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("ExpectedAttention", cohort.size()));
  const Opened opened(this);
  return ref_.ExpectedAttention(cohort);
}
absl::Status BatchingRef::WindowAttention(std::span<const WindowAttentionArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("WindowAttention", cohort.size()));
  const Opened opened(this);
  return ref_.WindowAttention(cohort);
}
absl::Status BatchingRef::KeyDiff(std::span<const KeyDiffArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("KeyDiff", cohort.size()));
  const Opened opened(this);
  return ref_.KeyDiff(cohort);
}
absl::Status BatchingRef::AttentionMass(std::span<const AttentionMassArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("AttentionMass", cohort.size()));
  const Opened opened(this);
  return ref_.AttentionMass(cohort);
}
absl::Status BatchingRef::ZScore(std::span<const ZScoreArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("ZScore", cohort.size()));
  const Opened opened(this);
  return ref_.ZScore(cohort);
}
absl::Status BatchingRef::Blend(std::span<const BlendArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Blend", cohort.size()));
  const Opened opened(this);
  return ref_.Blend(cohort);
}
absl::Status BatchingRef::ShareRows(std::span<const ShareRowsArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("ShareRows", cohort.size()));
  const Opened opened(this);
  return ref_.ShareRows(cohort);
}
absl::Status BatchingRef::HideScores(std::span<const HideScoresArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("HideScores", cohort.size()));
  const Opened opened(this);
  return ref_.HideScores(cohort);
}
absl::Status BatchingRef::TopK(std::span<const TopKArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("TopK", cohort.size()));
  const Opened opened(this);
  return ref_.TopK(cohort);
}
absl::Status BatchingRef::Diverse(std::span<const DiverseArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Diverse", cohort.size()));
  const Opened opened(this);
  return ref_.Diverse(cohort);
}
absl::Status BatchingRef::MeanKey(std::span<const MeanKeyArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("MeanKey", cohort.size()));
  const Opened opened(this);
  return ref_.MeanKey(cohort);
}
absl::Status BatchingRef::Encode(std::span<const EncodeArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Encode", cohort.size()));
  const Opened opened(this);
  return ref_.Encode(cohort);
}
absl::Status BatchingRef::Decode(std::span<const DecodeArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Decode", cohort.size()));
  const Opened opened(this);
  return ref_.Decode(cohort);
}
absl::Status BatchingRef::Gather(std::span<const GatherArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Gather", cohort.size()));
  for (const GatherArgs& args : cohort) {
    KVERN_CHECK(args.in_place == cohort[0].in_place);
    const bool same = !args.in.empty() && args.in[0].base == args.out[0].base;
    KVERN_CHECK(args.in.empty() || same == args.in_place);
  }
  const Opened opened(this);
  return ref_.Gather(cohort);
}
absl::Status BatchingRef::Scale(float factor, std::span<const ScoreView> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Scale", cohort.size()));
  const Opened opened(this);
  return ref_.Scale(factor, cohort);
}

absl::Status BatchingRef::Finish() { return before ? before("Finish", 1) : absl::OkStatus(); }

absl::StatusOr<int64_t> BatchingRef::Lap() {
  if (lap_micros >= 0) return lap_micros;
  return ref_.Lap();
}

absl::StatusOr<StagedRows> BatchingRef::Stage(LayerRefs rows) {
  if (before) KVERN_RETURN_IF_ERROR(before("Stage", 1));
  StagedRows staged;
  int64_t bytes = 0;
  for (const KvRef& from : rows) bytes += BytesOf(from);
  KVERN_ASSIGN_OR_RETURN(staged.memory, Allocate(bytes));
  const Opened opened(this);
  std::byte* next = staged.memory.data();
  for (const KvRef& from : rows) {
    staged.rows.push_back(DenseKvRef(from.dtype, next, from.kv_heads, from.tokens, from.head_dim));
    CopyRows(from, staged.rows.back());
    next += BytesOf(from);
  }
  return staged;
}

}  // namespace kvern::support
