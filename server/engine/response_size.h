// What an answer will weigh on the wire, told from counts before any byte moves (ruling 18).
#ifndef KVERN_SERVER_ENGINE_RESPONSE_SIZE_H_
#define KVERN_SERVER_ENGINE_RESPONSE_SIZE_H_

#include <cstdint>
#include <vector>

#include "server/engine/compress_job.h"
#include "server/engine/source.h"
#include "server/pipeline/resolve.h"

namespace kvern::engine {

// The fields that an answer carries: as asked for, or what the placement has by default.
ResponseFields FieldsFor(const ResponseFields& asked, pipeline::Placement placement);

// An upper bound of one result's bytes, its block ids included.
int64_t ResponseBytes(const BoundSource& source, const pipeline::ResolvedPolicy& policy,
                      const std::vector<int32_t>& counts, const ResponseFields& fields);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_RESPONSE_SIZE_H_
