// One structured line per RPC: outcome and timings, never KV bytes.
#ifndef KVERN_SERVER_TELEMETRY_CALL_LOG_H_
#define KVERN_SERVER_TELEMETRY_CALL_LOG_H_

#include <string>

#include "absl/strings/string_view.h"
#include "server/engine/rpc_events.h"

namespace kvern::telemetry {

enum class LogFormat : uint8_t { kText, kJson };
enum class LogLevel : uint8_t { kDebug, kInfo, kWarning, kError };

// Sets format and level of the process's log on stderr, and sends gRPC's own lines there.
void StartLog(LogFormat format, LogLevel level);

// Writes one line of ours; `message` is the event in one sentence.
void Log(LogLevel level, absl::string_view message);

// The fields of one finished RPC after its time: as `key=value` text or as one JSON object.
std::string Line(LogFormat format, const engine::RpcEnd& end);

class CallLog final : public engine::RpcEvents {
 public:
  explicit CallLog(LogFormat format) : format_(format) {}
  void OnStart(engine::Rpc) override {}
  // Errors of ours at error level, refusals at warning, the rest at info.
  void OnEnd(const engine::RpcEnd& end) override;

 private:
  const LogFormat format_;
};

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_CALL_LOG_H_
