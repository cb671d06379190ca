// The memory behind a pool: attachments are looked up, handles of the server's device are opened.
#ifndef KVERN_SERVER_MEMORY_POOL_REGIONS_H_
#define KVERN_SERVER_MEMORY_POOL_REGIONS_H_

#include "absl/status/status.h"
#include "server/memory/pool.h"

namespace kvern::memory {

// Sets everything of `pool` that follows from spec.regions. Errors: NotFound/ATTACHMENT_UNKNOWN;
// of OpenOnDevice, with the field's path; InvalidArgument for one piece of memory twice, for
// regions of two users, and for regions on both sides.
absl::Status OpenRegions(const AttachmentTable& attachments, const ImportDevice& import,
                         Pool* pool);

// Whether every attachment of the pool still is one. Errors: NotFound/ATTACHMENT_UNKNOWN.
absl::Status StillAttached(const AttachmentTable& attachments, const Pool& pool);

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_POOL_REGIONS_H_
