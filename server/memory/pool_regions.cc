// Attachments carry their user and their connection; a bare handle has neither, so it gets the
// user of its pool and makes the pool live by its lease.
#include "server/memory/pool_regions.h"

#include <unistd.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

absl::Status BadRegions(absl::string_view what) {
  return WithField(absl::InvalidArgumentError(absl::StrCat("pool.regions: ", what)),
                   "pool.regions");
}

const char* MemberOf(const std::string& reason) {
  if (reason == "GPU_NOT_VISIBLE") return ".device_uuid";
  if (reason == "HANDLE_KIND_MISMATCH") return ".handle";
  if (reason == "REGION_OUT_OF_BOUNDS") return ".size_bytes";
  return "";
}

// Names the field of the request that the refusal is about.
absl::Status AtRegion(size_t index, const absl::Status& refusal) {
  const std::string reason = ReasonOf(refusal);
  const std::string field = absl::StrCat("pool.regions[", index, "].cuda_ipc", MemberOf(reason));
  absl::Status status(refusal.code(), absl::StrCat(field, ": ", refusal.message()));
  if (!reason.empty()) status = WithReason(std::move(status), reason);
  return WithField(std::move(status), field);
}

// Of the attachments, which have to agree.
absl::StatusOr<uid_t> OwnerOf(const AttachmentTable& attachments, const PoolSpec& spec) {
  std::vector<AttachmentId> ids;
  // gRPC names no uid: who may open the socket counts as one user, the server's.
  uid_t owner = geteuid();
  for (const RegionSource& source : spec.regions) {
    if (source.handle != nullptr) continue;
    KVERN_ASSIGN_OR_RETURN(const std::shared_ptr<Region> region,
                           attachments.Find(source.attachment));
    if (!ids.empty() && region->Owner() != owner) {
      return BadRegions("got regions of two users, want all of one");
    }
    owner = region->Owner();
    ids.push_back(source.attachment);
  }
  std::sort(ids.begin(), ids.end());
  if (std::adjacent_find(ids.begin(), ids.end()) != ids.end()) {
    return BadRegions("got one attachment twice, want each once");
  }
  return owner;
}

// The backend maps an allocation once however often it is opened, so that addresses tell.
absl::Status CheckApart(const std::vector<std::shared_ptr<Region>>& regions) {
  std::vector<std::pair<const std::byte*, const std::byte*>> ranges;  // [begin, end)
  for (const auto& region : regions) {
    if (region->OnDevice() != regions.front()->OnDevice()) {
      return BadRegions("got some on the host and some on the device, want all on one side");
    }
    ranges.emplace_back(region->Data(), region->Data() + region->SizeBytes());
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) {
      return BadRegions("got two that overlap in one allocation, want each byte once");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status OpenRegions(const AttachmentTable& attachments, const ImportDevice& import,
                         Pool* pool) {
  KVERN_ASSIGN_OR_RETURN(const uid_t owner, OwnerOf(attachments, pool->spec));
  for (size_t i = 0; i < pool->spec.regions.size(); ++i) {
    std::shared_ptr<Region> region;
    const RegionSource& source = pool->spec.regions[i];
    if (source.handle != nullptr) {
      auto mapping = OpenOnDevice(import, *source.handle);
      if (!mapping.ok()) return AtRegion(i, mapping.status());
      region = Region::OnDevice(*std::move(mapping), owner);
      pool->leased = true;
    } else {
      KVERN_ASSIGN_OR_RETURN(region, attachments.Find(source.attachment));
      pool->connections.push_back(attachments.ConnectionOf(source.attachment));
    }
    pool->mapped_bytes += region->SizeBytes();
    pool->regions.push_back(std::move(region));
  }
  std::sort(pool->connections.begin(), pool->connections.end());
  pool->connections.erase(std::unique(pool->connections.begin(), pool->connections.end()),
                          pool->connections.end());
  return CheckApart(pool->regions);
}

absl::Status StillAttached(const AttachmentTable& attachments, const Pool& pool) {
  for (const RegionSource& source : pool.spec.regions) {
    if (source.handle != nullptr) continue;
    KVERN_RETURN_IF_ERROR(attachments.Find(source.attachment).status());
  }
  return absl::OkStatus();
}

}  // namespace kvern::memory
