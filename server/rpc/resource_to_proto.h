// Models, calibrations, pools and stored sequences as the wire describes them.
#ifndef KVERN_SERVER_RPC_RESOURCE_TO_PROTO_H_
#define KVERN_SERVER_RPC_RESOURCE_TO_PROTO_H_

#include "kvern/v1/model.pb.h"
#include "kvern/v1/pool.pb.h"
#include "kvern/v1/store.pb.h"
#include "server/engine/model_registry.h"
#include "server/memory/pool.h"
#include "server/memory/store.h"

namespace kvern::rpc {

void ToProto(const engine::RegisteredModel& model, v1::Model* out);
void ToProto(const engine::CalibrationArtifact& artifact, v1::Calibration* out);
void ToProto(const engine::ObservedQueries::Facts& facts, v1::ObservedQueries* out);

// Attachment ids and handles are bearer secrets: regions are counted, never named.
void ToProto(const memory::Pool& pool, v1::Pool* out);

enum class Detail : uint8_t { kBrief, kFull };  // brief: without positions and lengths
struct StoredState {
  bool released = false;
  Detail detail = Detail::kFull;
};
void ToProto(const memory::StoredSequence& sequence, const StoredState& state,
             v1::StoredSequence* out);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_RESOURCE_TO_PROTO_H_
