// Every op is counted, then done by ref.
#include "tests/support/batching_ref.h"

#include <cstring>

#include "kernels/base/status_macros.h"

namespace kvern::support {

absl::Status BatchingRef::Count(const std::string& op, size_t cohort) {
  ++calls[op];
  return before ? before(op, cohort) : absl::OkStatus();
}

absl::Status BatchingRef::RowNorms(std::span<const RowNormsArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("RowNorms", cohort.size()));
  return ref_.RowNorms(cohort);
}
absl::Status BatchingRef::TriAttention(std::span<const TriAttentionArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("TriAttention", cohort.size()));
  return ref_.TriAttention(cohort);
}
absl::Status BatchingRef::ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("ExpectedAttention", cohort.size()));
  return ref_.ExpectedAttention(cohort);
}
absl::Status BatchingRef::WindowAttention(std::span<const WindowAttentionArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("WindowAttention", cohort.size()));
  return ref_.WindowAttention(cohort);
}
absl::Status BatchingRef::KeyDiff(std::span<const KeyDiffArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("KeyDiff", cohort.size()));
  return ref_.KeyDiff(cohort);
}
absl::Status BatchingRef::AttentionMass(std::span<const AttentionMassArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("AttentionMass", cohort.size()));
  return ref_.AttentionMass(cohort);
}
absl::Status BatchingRef::ZScore(std::span<const ZScoreArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("ZScore", cohort.size()));
  return ref_.ZScore(cohort);
}
absl::Status BatchingRef::Blend(std::span<const BlendArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Blend", cohort.size()));
  return ref_.Blend(cohort);
}
absl::Status BatchingRef::ShareRows(std::span<const ShareRowsArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("ShareRows", cohort.size()));
  return ref_.ShareRows(cohort);
}
absl::Status BatchingRef::HideScores(std::span<const HideScoresArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("HideScores", cohort.size()));
  return ref_.HideScores(cohort);
}
absl::Status BatchingRef::TopK(std::span<const TopKArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("TopK", cohort.size()));
  return ref_.TopK(cohort);
}
absl::Status BatchingRef::Diverse(std::span<const DiverseArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Diverse", cohort.size()));
  return ref_.Diverse(cohort);
}
absl::Status BatchingRef::MeanKey(std::span<const MeanKeyArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("MeanKey", cohort.size()));
  return ref_.MeanKey(cohort);
}
absl::Status BatchingRef::Encode(std::span<const EncodeArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Encode", cohort.size()));
  return ref_.Encode(cohort);
}
absl::Status BatchingRef::Decode(std::span<const DecodeArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Decode", cohort.size()));
  return ref_.Decode(cohort);
}
absl::Status BatchingRef::Gather(std::span<const GatherArgs> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Gather", cohort.size()));
  return ref_.Gather(cohort);
}
absl::Status BatchingRef::Scale(float factor, std::span<const ScoreView> cohort) {
  KVERN_RETURN_IF_ERROR(Count("Scale", cohort.size()));
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
  const auto bytes_of = [](const KvRef& from) {
    return from.kv_heads * from.tokens * from.head_dim * SizeOf(from.dtype);
  };
  for (const KvRef& from : rows) bytes += bytes_of(from);
  const auto give_back = [](void* owner, std::byte* data, int64_t) {
    --*static_cast<int*>(owner);
    delete[] data;
  };
  staged.memory = Buffer(new std::byte[bytes], bytes, give_back, &staged_now);
  ++staged_now;
  std::byte* next = staged.memory.data();
  for (const KvRef& from : rows) {
    staged.rows.push_back(DenseKvRef(from.dtype, next, from.kv_heads, from.tokens, from.head_dim));
    next += bytes_of(from);
    const KvRef& to = staged.rows.back();
    for (int64_t row = 0; row < from.kv_heads * from.tokens; ++row) {
      const int64_t head = row / from.tokens, token = row % from.tokens;
      for (int64_t dim = 0; dim < from.head_dim; ++dim) {
        std::memcpy(to.Address(head, token) + dim * to.strides.dim,
                    from.Address(head, token) + dim * from.strides.dim, SizeOf(from.dtype));
      }
    }
  }
  return staged;
}

}  // namespace kvern::support
