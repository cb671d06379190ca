// Memory objects of a pretended client.
#ifndef KVERN_TESTS_UNIT_SERVER_MEMORY_MEMFD_H_
#define KVERN_TESTS_UNIT_SERVER_MEMORY_MEMFD_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <memory>

#include "gtest/gtest.h"
#include "server/memory/region.h"

namespace kvern::memory {

inline int MakeMemfd(int64_t size_bytes, int seals) {
  const int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(ftruncate(fd, size_bytes), 0);
  if (seals != 0) {
    EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
  }
  return fd;
}

inline std::shared_ptr<Region> MakeRegion(int64_t size_bytes) {
  auto region = Region::Map(MakeMemfd(size_bytes, F_SEAL_SHRINK | F_SEAL_GROW), getuid());
  EXPECT_TRUE(region.ok()) << region.status();
  return *std::move(region);
}

}  // namespace kvern::memory

#endif  // KVERN_TESTS_UNIT_SERVER_MEMORY_MEMFD_H_
