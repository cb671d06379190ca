// From one cache to a smaller one: picks how the bytes travel, and puts the result into one form.
#ifndef KVERN_CLIENT_CPP_COMPRESS_FILE_H_
#define KVERN_CLIENT_CPP_COMPRESS_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/cache_file.h"
#include "client/cpp/client.h"

namespace kvern::client {

// How a cache reaches the server (ruling 16).
enum class Transport : uint8_t {
  kAuto,    // shared memory on a Unix socket, else in the message up to the cap, else the store
  kPool,    // shared memory, never on the wire
  kInline,  // in the message
  kStore,   // streamed into the server's store, deleted after
};
const char* Name(Transport transport);

enum class Extent : uint8_t {
  kCompress,  // all of it
  kPlan,      // what would happen: counts, bytes and chain, no cache bytes back
};

struct CompressOptions {
  std::string model = {};  // `models/{model}`, registered
  v1::Policy policy = {};  // placement is chosen here; no part at all means the preset `balanced`
  Transport via = Transport::kAuto;
  Extent extent = Extent::kCompress;
  bool with_scores = false;
  Progress progress = nullptr;
};

// A compressed cache in memory. Rows are (layer, kv_head); max_kept is the longest row.
struct CompressedCache {
  v1::SequenceResult result;         // facts; its tensors are moved into the members below
  Transport via = Transport::kAuto;  // the one that was taken
  CacheShape shape;                  // of the result: tokens is max_kept
  int64_t source_tokens = 0;
  std::vector<int32_t> kept_counts;  // [layers, kv_heads]
  std::vector<int32_t> kept;         // [layers, kv_heads, max_kept] source slots, -1 fills
  std::vector<int32_t> positions;    // [layers, kv_heads, max_kept], -1 fills
  std::string scores;           // f32 [layers, kv_heads, source tokens]; empty unless asked for
  std::string k, v;             // [layers, kv_heads, max_kept, head_dim]; empty when packed
  std::string packed;           // blocks of ruling 13; empty when dense
  std::string packed_table;     // i64 [rows, 8]
  std::string packed_mean_key;  // f16 [layers, kv_heads, head_dim]; empty without rm
  bool Packed() const { return !packed_table.empty(); }
};

// Errors: InvalidArgument for a packed cache (unpack it first); of the chosen transport and of
// CompressCache, faults of the one sequence included.
absl::StatusOr<CompressedCache> CompressFile(const Client& client, const CacheFile& cache,
                                             const CompressOptions& options);

// The result file of architecture.md 3: source tensors and keys that still hold are carried along.
absl::Status WriteCompressedFile(const std::string& path, const CacheFile& source,
                                 const CompressedCache& compressed, const Progress& progress);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_COMPRESS_FILE_H_
