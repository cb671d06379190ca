// A frontend of one server, as engines have it: a registered model, a pool, calls over both.
#ifndef KVERN_TESTS_BENCH_FRONTEND_H_
#define KVERN_TESTS_BENCH_FRONTEND_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/shared_pool.h"

namespace kvern::bench {

inline constexpr int64_t kLongTokens = 32768;
inline constexpr int64_t kSmallTokens = 256;  // 1 MiB of keys and values
inline constexpr int64_t kKvHeads = 8;
inline constexpr int64_t kQHeads = 32;
inline constexpr int64_t kHeadDim = 128;
inline constexpr int32_t kPoolBlockTokens = 64;

// One layer of 8 KV heads x 128, bf16; the policy of its requests is key_norm, half of the tokens:
// the cheapest real one, so that the call shows.
class Frontend {
 public:
  // With a pool that holds one long and some small sequences.
  static absl::StatusOr<Frontend> Connect(const std::string& address);

  // `count` sequences of equal length over the pool.
  absl::StatusOr<v1::CompressCacheRequest> Pooled(v1::Placement placement, int64_t tokens,
                                                  int count);
  // One sequence of `tokens` tokens in the message; asks for its bytes back.
  v1::CompressCacheRequest Inline(v1::Placement placement, int64_t tokens) const;
  // Every call is the first of its sequences: a higher epoch forgets what the last one did.
  // Errors: of the call, of any sequence.
  absl::StatusOr<v1::CompressCacheResponse> Call(v1::CompressCacheRequest& request);
  // A sequence to store: header, and keys and values of `tokens` tokens.
  struct Stored {
    v1::StoredSequence header;
    int64_t tokens;
    std::string k, v;
  };
  Stored ToStore(int64_t tokens) const;
  // Errors: of PutSequence.
  absl::Status Put(const Stored& stored) const;

  const client::Client& client() const { return client_; }

 private:
  Frontend(client::Client client, std::string model, client::SharedPool pool)
      : client_(std::move(client)), model_(std::move(model)), pool_(std::move(pool)) {}
  v1::CompressCacheRequest Request(v1::Placement placement) const;
  absl::StatusOr<std::vector<uint32_t>> Place(int64_t tokens);

  client::Client client_;
  std::string model_;
  client::SharedPool pool_;
  uint64_t epoch_ = 0;
};

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_FRONTEND_H_
