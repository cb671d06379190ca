// Tells two requests under one request_id apart (ruling 17).
#ifndef KVERN_SERVER_RPC_REQUEST_HASH_H_
#define KVERN_SERVER_RPC_REQUEST_HASH_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "kvern/v1/compression.pb.h"

namespace kvern::rpc {

// The first 64 bits of the SHA-256 of the request in deterministic form, the bytes of its tensors
// left out. The message is as before when the call returns; no other thread may look at it
// meanwhile.
uint64_t HashWithoutTensors(v1::CompressCacheRequest* request);

// 32 bytes.
std::string Sha256(absl::string_view bytes);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_REQUEST_HASH_H_
