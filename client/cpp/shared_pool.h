// A paged pool in memory that client and server share: bytes are written once and never travel.
#ifndef KVERN_CLIENT_CPP_SHARED_POOL_H_
#define KVERN_CLIENT_CPP_SHARED_POOL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/broker_connection.h"
#include "client/cpp/client.h"
#include "kernels/base/kv_ref.h"

namespace kvern::client {

struct SharedPoolOptions {
  std::string model = {};  // `models/{model}`, registered
  DType dtype = DType::kBF16;
  int32_t kv_heads = 0;  // of the model
  int32_t head_dim = 0;
  std::vector<int32_t> layers = {};  // layers of the model that the pool holds, ascending
  int32_t block_tokens = 64;         // 1..256
  int64_t num_blocks = 0;
  v1::ShapeClass max_shape_class = v1::SHAPE_CLASS_S4;
  v1::Engine engine = v1::ENGINE_OTHER;
};

// A dense cache in the caller's memory: k and v are [layers, kv_heads, tokens, head_dim].
struct DenseCache {
  std::span<const std::byte> k = {};
  std::span<const std::byte> v = {};
  int64_t tokens = 0;
};

// Sealed memfd, mapped here and at the server. Blocks are handed out and taken back here; the
// server only knows their ids. Dying, it closes its broker connection: the server then expires the
// pool. One thread at a time.
class SharedPool {
 public:
  // Errors: FailedPrecondition when the server is not on a Unix socket; ResourceExhausted when the
  // memory cannot be had; of the broker and of RegisterPool.
  static absl::StatusOr<SharedPool> Create(const Client& client, const SharedPoolOptions& options);
  ~SharedPool();
  SharedPool(SharedPool&&) noexcept;
  SharedPool& operator=(SharedPool&&) noexcept;

  // `pools/{pool}`.
  const std::string& Name() const;
  int64_t NumFreeBlocks() const;
  // Lowest free ids. Errors: ResourceExhausted.
  absl::StatusOr<std::vector<uint32_t>> AllocateBlocks(int64_t count);
  // Blocks come back zeroed at their next allocation.
  void FreeBlocks(std::span<const uint32_t> block_ids);
  int64_t BlocksFor(int64_t tokens) const;

  // One layer's keys or values over a table; borrows block_ids and the pool.
  KvRef Keys(int64_t layer_slot, std::span<const uint32_t> block_ids, int64_t tokens) const;
  KvRef Values(int64_t layer_slot, std::span<const uint32_t> block_ids, int64_t tokens) const;

  // Spreads a dense cache over blocks. Errors: InvalidArgument for sizes or ids that do not fit.
  absl::Status Write(const DenseCache& cache, std::span<const uint32_t> block_ids);
  // Gathers blocks into dense k and v, resized to [layers, kv_heads, tokens, head_dim].
  absl::Status Read(std::span<const uint32_t> block_ids, int64_t tokens, std::string* k,
                    std::string* v) const;

 private:
  struct State;
  explicit SharedPool(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Where the broker beside a server's socket listens: what the server names, and what stands beside
// the socket as this process sees it (ruling 15). Empty for TCP.
std::vector<std::string> BrokerPaths(const std::string& server_address,
                                     const std::string& broker_address);

// Errors: FailedPrecondition/BROKER_MISSING for a server without one; of Connect.
absl::StatusOr<BrokerConnection> ConnectBroker(const Client& client);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_SHARED_POOL_H_
