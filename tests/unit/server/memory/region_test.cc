// Only memory that cannot vanish under the server is mapped; ids die with their connection.
#include "server/memory/region.h"

#include <sys/stat.h>

#include <set>
#include <string>

#include "gmock/gmock.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/memory/memfd.h"

namespace kvern::memory {
namespace {

using ::testing::HasSubstr;

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

TEST(Region, SharesBytesWithTheClient) {
  const int fd = MakeMemfd(10000, F_SEAL_SHRINK);
  const int client = dup(fd);
  const auto region = Region::Map(fd, 7);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ((*region)->SizeBytes(), 10000);
  EXPECT_EQ((*region)->Owner(), 7u);
  const char sent = 'k';
  ASSERT_EQ(pwrite(client, &sent, 1, 9999), 1);
  EXPECT_EQ((*region)->Data()[9999], std::byte{'k'});
  (*region)->Data()[0] = std::byte{'v'};
  char seen = 0;
  ASSERT_EQ(pread(client, &seen, 1, 0), 1);
  EXPECT_EQ(seen, 'v');
  EXPECT_FALSE(IsOpen(fd));  // the mapping needs no descriptor
  close(client);
}

TEST(Region, RejectsAMemfdThatCanShrink) {
  const int fd = MakeMemfd(4096, F_SEAL_GROW);
  const auto region = Region::Map(fd, 0);
  EXPECT_EQ(region.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(region.status().message()), HasSubstr("F_SEAL_SHRINK"));
  EXPECT_FALSE(IsOpen(fd));
}

TEST(Region, RejectsAnEmptyMemfd) {
  EXPECT_EQ(Region::Map(MakeMemfd(0, F_SEAL_SHRINK), 0).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Region, RejectsAWriteSealedMemfd) {
  EXPECT_EQ(Region::Map(MakeMemfd(4096, F_SEAL_SHRINK | F_SEAL_WRITE), 0).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Region, RejectsAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(Region::Map(ends[0], 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(IsOpen(ends[0]));
  close(ends[1]);
}

TEST(Region, RejectsADescriptorThatIsNone) {
  EXPECT_EQ(Region::Map(-1, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Region, RejectsAMemfdLargerThanTheAddressSpace) {
  const auto region = Region::Map(MakeMemfd(int64_t{1} << 62, F_SEAL_SHRINK), 0);
  EXPECT_EQ(region.status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(AttachmentTable, FindsWhatWasAttached) {
  AttachmentTable table;
  const auto region = MakeRegion(4096);
  const AttachmentId id = table.Attach(region, 3);
  ASSERT_TRUE(table.Find(id).ok());
  EXPECT_EQ(*table.Find(id), region);
  EXPECT_EQ(table.ConnectionOf(id), 3);
}

TEST(AttachmentTable, DoesNotFindAnIdThatDiffersInOneBit) {
  AttachmentTable table;
  const AttachmentId id = table.Attach(MakeRegion(4096), 3);
  for (size_t bit = 0; bit < 128; ++bit) {
    AttachmentId forged = id;
    forged[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    EXPECT_EQ(ReasonOf(table.Find(forged).status()), "ATTACHMENT_UNKNOWN");
    EXPECT_EQ(table.ConnectionOf(forged), 0);
  }
}

TEST(AttachmentTable, NeverAnswersTheSameIdTwice) {
  AttachmentTable table;
  const auto region = MakeRegion(4096);
  std::set<AttachmentId> ids;
  for (int i = 0; i < 1000; ++i) ids.insert(table.Attach(region, 1));
  EXPECT_EQ(ids.size(), 1000u);
}

TEST(AttachmentTable, CloseDropsTheConnectionsEntriesAndThenTells) {
  AttachmentTable table;
  const AttachmentId first = table.Attach(MakeRegion(4096), 1);
  const AttachmentId second = table.Attach(MakeRegion(4096), 2);
  int64_t told = 0;
  int64_t left = -1;
  table.OnClose([&](int64_t connection) {
    told = connection;
    left = table.Count();
  });
  table.Close(1);
  EXPECT_EQ(told, 1);
  EXPECT_EQ(left, 1);
  EXPECT_FALSE(table.Find(first).ok());
  EXPECT_TRUE(table.Find(second).ok());
}

TEST(AttachmentTable, CloseLetsGoOfTheRegion) {
  AttachmentTable table;
  auto region = MakeRegion(4096);
  const std::weak_ptr<Region> watch = region;
  table.Attach(std::move(region), 1);
  table.Close(1);
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace kvern::memory
