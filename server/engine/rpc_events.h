// What observers may see of the wire. Implementations are thread-safe, do not block and do not call
// back. Never carries KV bytes.
#ifndef KVERN_SERVER_ENGINE_RPC_EVENTS_H_
#define KVERN_SERVER_ENGINE_RPC_EVENTS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "server/pipeline/plan.h"

namespace kvern::engine {

enum class Rpc : uint8_t {
  kCompressCache,
  kReleaseSequences,
  kRegisterPool,
  kGetPool,
  kListPools,
  kUnregisterPool,
  kKeepPoolAlive,
  kPutSequence,
  kAppendSequence,
  kFetchSequence,
  kGetSequence,
  kListSequences,
  kDeleteSequence,
  kRegisterModel,
  kGetModel,
  kListModels,
  kDeleteModel,
  kImportCalibration,
  kGetServerInfo,
  kListStages,
  kObserveQueries,
  kExportCalibration,
  kPlanCompression,
  kApplyCompression,
};
inline constexpr int kRpcCount = static_cast<int>(Rpc::kApplyCompression) + 1;
// "CompressCache".
const char* Name(Rpc rpc);

// Totals of one CompressCache call over its sequences.
struct CompressSummary {
  int64_t sequences = 0, applied = 0, noop = 0, skipped = 0, failed = 0;
  int64_t source_tokens = 0, kept_tokens = 0;
  int64_t bytes_before = 0, bytes_after = 0;
  int64_t queue_us = 0;
  pipeline::StageMicros micros;
  std::string preset;  // of the first sequence
  bool replayed = false;
};

struct RpcEnd {
  Rpc rpc = Rpc::kCompressCache;
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string reason;   // ErrorInfo reason, or empty
  std::string message;  // of the error: what, got, want
  double seconds = 0;
  std::string peer;        // "unix", or the TCP address
  std::string request_id;  // as the client sent it, cut at 128 bytes
  std::optional<CompressSummary> compress;
};

class RpcEvents {
 public:
  virtual ~RpcEvents() = default;
  virtual void OnStart(Rpc rpc) = 0;
  virtual void OnEnd(const RpcEnd& end) = 0;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_RPC_EVENTS_H_
