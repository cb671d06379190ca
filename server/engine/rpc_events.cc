// Names of calls, as the proto spells them.
#include "server/engine/rpc_events.h"

#include "kernels/base/status_macros.h"

namespace kvern::engine {

const char* Name(Rpc rpc) {
  constexpr const char* kNames[] = {
      "CompressCache",  "ReleaseSequences",  "RegisterPool",    "GetPool",
      "ListPools",      "UnregisterPool",    "KeepPoolAlive",   "PutSequence",
      "AppendSequence", "FetchSequence",     "GetSequence",     "ListSequences",
      "DeleteSequence", "RegisterModel",     "GetModel",        "ListModels",
      "DeleteModel",    "ImportCalibration", "GetServerInfo",   "ListStages",
      "ObserveQueries", "ExportCalibration", "PlanCompression", "ApplyCompression"};
  static_assert(std::size(kNames) == kRpcCount);
  const int index = static_cast<int>(rpc);
  KVERN_CHECK(index >= 0 && index < kRpcCount);
  return kNames[index];
}

}  // namespace kvern::engine
