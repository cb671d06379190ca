// What of a sequence is there, what stays whatever its score, and what is left to choose from.
#ifndef KVERN_SERVER_PIPELINE_TOKEN_MASKS_H_
#define KVERN_SERVER_PIPELINE_TOKEN_MASKS_H_

#include <cstdint>
#include <vector>

#include "kernels/base/reuse.h"
#include "server/pipeline/plan.h"

namespace kvern::pipeline {

// Owner of a [layers, kv_heads, tokens] mask; rows that are equal everywhere are stored once.
class TokenMask {
 public:
  enum class Rows : uint8_t { kShared, kOwn };
  TokenMask() = default;
  TokenMask(const SequenceInput& input, Rows rows);

  MaskView View() const;
  // Rows to fill: 1 when shared, layers * kv_heads otherwise.
  int64_t StoredRows() const { return rows_ == Rows::kShared ? 1 : layers_ * kv_heads_; }
  uint8_t* Row(int64_t row) { return bytes_.data() + row * tokens_; }
  const uint8_t* Row(int64_t row) const { return bytes_.data() + row * tokens_; }

 private:
  Rows rows_ = Rows::kShared;
  int64_t layers_ = 0;
  int64_t kv_heads_ = 0;
  int64_t tokens_ = 0;
  ScratchVector<uint8_t> bytes_;
};

struct TokenMasks {
  TokenMask alive;
  TokenMask forced;      // protected and alive
  TokenMask candidates;  // alive and not protected
};

// Tokens that the sequence holds.
TokenMask AliveMask(const SequenceInput& input);

// Alive tokens at or after `first`.
TokenMask AliveAfter(const SequenceInput& input, int64_t first);

TokenMasks MasksOf(const SequenceInput& input, const ResolvedPolicy& policy,
                   const CountPlan& counts);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_TOKEN_MASKS_H_
