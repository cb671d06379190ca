// Packed stored sequences back to dense K and V.
#ifndef KVERN_SERVER_ENGINE_DECODE_STORED_H_
#define KVERN_SERVER_ENGINE_DECODE_STORED_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "server/memory/store.h"
#include "server/pipeline/model.h"

namespace kvern::engine {

struct DenseKv {
  std::vector<std::byte> k;  // [layers, kv_heads, num_tokens, head_dim]
  std::vector<std::byte> v;
};

// Bytes of both.
int64_t DenseBytes(const pipeline::ModelSpec& model, const memory::StoredInfo& info);

// Errors: FailedPrecondition unless the sequence is packed; ResourceExhausted; of the backend.
absl::Status DecodePacked(Backend& backend, const pipeline::ModelSpec& model,
                          const memory::StoredSequence& sequence, DenseKv* dense);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_DECODE_STORED_H_
