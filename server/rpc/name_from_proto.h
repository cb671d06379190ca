// Resource names: `models/x`, `pools/x`, `sequences/x`, `calibrations/<sha256>`, `plans/x`.
#ifndef KVERN_SERVER_RPC_NAME_FROM_PROTO_H_
#define KVERN_SERVER_RPC_NAME_FROM_PROTO_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

enum class Collection : uint8_t { kModels, kPools, kSequences, kCalibrations, kPlans };

// The id behind the prefix: 1..128 bytes of [A-Za-z0-9_.-]; of a calibration 64 lower-case hex
// digits. Errors: InvalidArgument with the field path.
absl::StatusOr<std::string> ParseName(absl::string_view name, Collection collection,
                                      const FieldPath& path);
// As ParseName, but an empty name is an empty id: the server chooses.
absl::StatusOr<std::string> ParseOptionalName(absl::string_view name, Collection collection,
                                              const FieldPath& path);
// An empty id gives an empty name.
std::string MakeName(absl::string_view id, Collection collection);

// The caller's own id of a sequence: 1..128 bytes, opaque.
absl::Status CheckOpaqueId(absl::string_view id, const FieldPath& path);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_NAME_FROM_PROTO_H_
