// The tokens of one stored sequence into the first slots of a longer one.
#ifndef KVERN_SERVER_ENGINE_COPY_STORED_H_
#define KVERN_SERVER_ENGINE_COPY_STORED_H_

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "server/memory/store.h"

namespace kvern::engine {

// Both dense, of the same layers, kv_heads, head_dim and dtype; `to` holds at least as many tokens
// in every head. Layer by layer by ops of the backend, so that on a device nothing passes the host.
// Errors: of the backend.
absl::Status CopyTokens(Backend& backend, const memory::StoredSequence& from,
                        const memory::StoredSequence& to);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_COPY_STORED_H_
