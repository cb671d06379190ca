// Room is found, shared, evicted and wiped as promised, in memory of the host and of a device.
#include "server/memory/store.h"

#include <algorithm>
#include <set>
#include <thread>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/memory/keeping_backend.h"

namespace kvern::memory {
namespace {

constexpr int64_t kPieceBytes = 2 * 64 * 64 * 2;  // kv_heads x block tokens x head_dim x bf16

StoredInfo InfoOf(const std::string& id, int64_t tokens) {
  StoredInfo info;
  info.id = id;
  info.layer_indices = {0, 1, 2};
  info.kv_heads = 2;
  info.head_dim = 64;
  info.num_tokens = tokens;
  info.logical_tokens = tokens;
  return info;
}
// Dense sequences of up to 64 tokens: 3 layers x K and V.
constexpr int64_t kSequenceBytes = 6 * kPieceBytes;

enum class Where : uint8_t { kHost, kDevice };

class StoreTest : public testing::TestWithParam<Where> {
 protected:
  std::unique_ptr<Store> MakeStore(int64_t sequences, int64_t max_sequences = 100) {
    const int64_t bytes = sequences * kSequenceBytes;
    auto memory = MapHostStore(bytes);
    if (GetParam() == Where::kDevice) {
      memory = AllocateDeviceStore(std::make_shared<KeepingBackend>(bytes), bytes);
    }
    EXPECT_TRUE(memory.ok()) << memory.status();
    auto store = Store::Create(*std::move(memory), max_sequences);
    EXPECT_EQ(store->OnDevice(), GetParam() == Where::kDevice);
    return store;
  }
};
INSTANTIATE_TEST_SUITE_P(On, StoreTest, testing::Values(Where::kHost, Where::kDevice),
                         [](const auto& where) {
                           return where.param == Where::kHost ? "Host" : "Device";
                         });

void Fill(const StoredSequence& sequence, std::byte* at, int64_t bytes, int value) {
  const std::vector<std::byte> filled(static_cast<size_t>(bytes), std::byte(value));
  ASSERT_TRUE(sequence.CopyIn(filled, at).ok());
}
bool Holds(const StoredSequence& sequence, const std::byte* at, int64_t bytes, int value) {
  std::vector<std::byte> held(static_cast<size_t>(bytes), std::byte{0xDD});
  EXPECT_TRUE(sequence.CopyOut(at, held).ok());
  return std::all_of(held.begin(), held.end(), [&](std::byte b) { return b == std::byte(value); });
}

// Allocates and publishes; the store alone holds it afterwards.
absl::Status Put(Store& store, const std::string& id) {
  auto sequence = store.AllocateDense(InfoOf(id, 64));
  if (!sequence.ok()) return sequence.status();
  return store.Publish(*std::move(sequence), Store::Commit::kNew, 0);
}

template <class Fn>
void ForEachRow(const KvRef& ref, Fn&& fn) {
  for (int32_t head = 0; head < ref.kv_heads; ++head) {
    for (int64_t token = 0; token < ref.tokens; ++token) {
      fn(ref.Address(head, token), ref.head_dim * SizeOf(ref.dtype));
    }
  }
}

TEST_P(StoreTest, DenseRowsAreZeroAndApart) {
  const auto store = MakeStore(8);
  const auto sequence = store->AllocateDense(InfoOf("a", 150));
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_EQ((*sequence)->StoredBytes(), 3 * 2 * 3 * kPieceBytes);
  EXPECT_EQ(store->UsedBytes(), 3 * 2 * 3 * kPieceBytes);
  std::set<std::byte*> rows;
  for (int64_t slot = 0; slot < 3; ++slot) {
    for (const KvRef& ref : {(*sequence)->Keys(slot), (*sequence)->Values(slot)}) {
      EXPECT_EQ(ref.tokens, 150);
      EXPECT_TRUE(ref.HasContiguousRows());
      ForEachRow(ref, [&](std::byte* row, int64_t bytes) {
        EXPECT_TRUE(Holds(**sequence, row, bytes, 0));
        Fill(**sequence, row, bytes, 0xAB);
        rows.insert(row);
      });
    }
  }
  EXPECT_EQ(rows.size(), 3u * 2 * 2 * 150);  // a shared row would have been seen non-zero
}

TEST_P(StoreTest, DenseViewsCarryLengths) {
  const auto store = MakeStore(1);
  StoredInfo info = InfoOf("a", 64);
  info.lengths = {64, 1, 2, 3, 4, 5};
  const auto sequence = store->AllocateDense(info);
  ASSERT_TRUE(sequence.ok());
  EXPECT_EQ((*sequence)->Keys(1).Length(0), 2);
  EXPECT_EQ((*sequence)->Values(2).Length(1), 5);
}

TEST_P(StoreTest, RefusesLengthsThatDoNotMatch) {
  const auto store = MakeStore(1);
  StoredInfo info = InfoOf("a", 64);
  info.lengths = {64, 1};
  EXPECT_EQ(store->AllocateDense(info).status().code(), absl::StatusCode::kInvalidArgument);
  info.lengths = {64, 1, 2, 3, 4, 65};
  EXPECT_EQ(store->AllocateDense(info).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(StoreTest, EmptySequencesNeedNoRoom) {
  const auto store = MakeStore(1);
  ASSERT_TRUE(store->AllocateDense(InfoOf("a", 0)).ok());
  const auto packed = store->AllocatePacked(InfoOf("b", 0), 0);
  ASSERT_TRUE(packed.ok());
  EXPECT_TRUE((*packed)->Blocks().empty());
  EXPECT_EQ(store->UsedBytes(), 0);
}

TEST_P(StoreTest, PackedBlocksAreOneRange) {
  const auto store = MakeStore(1);
  const auto sequence = store->AllocatePacked(InfoOf("a", 64), 10000);
  ASSERT_TRUE(sequence.ok());
  EXPECT_TRUE((*sequence)->Packed());
  ASSERT_EQ((*sequence)->Blocks().size(), 10000u);
  Fill(**sequence, (*sequence)->Blocks().data(), 10000, 1);
  EXPECT_TRUE(Holds(**sequence, (*sequence)->Blocks().data() + 9999, 1, 1));
  EXPECT_GE((*sequence)->StoredBytes(), 10000);
}

TEST_P(StoreTest, RefusesWhatCanNeverFit) {
  const auto store = MakeStore(1);
  for (const int64_t tokens : {int64_t{65}, int64_t{1} << 40, INT64_MAX}) {
    EXPECT_EQ(store->AllocateDense(InfoOf("a", tokens)).status().code(),
              absl::StatusCode::kResourceExhausted);
  }
  StoredInfo wide = InfoOf("a", 1);
  wide.kv_heads = INT32_MAX;
  wide.head_dim = INT32_MAX;
  EXPECT_EQ(store->AllocateDense(wide).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(store->AllocatePacked(InfoOf("a", 1), INT64_MAX).ok());
  EXPECT_FALSE(store->AllocatePacked(InfoOf("a", 1), -1).ok());
  wide.kv_heads = 0;
  EXPECT_EQ(store->AllocateDense(wide).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->UsedBytes(), 0);
}

TEST(StoreMemory, RefusesACapacityThatIsNotOneToManyPages) {
  const auto backend = std::make_shared<KeepingBackend>(kSequenceBytes);
  for (const int64_t bytes : {int64_t{100}, int64_t{-1}, INT64_MAX}) {
    EXPECT_TRUE(absl::IsInvalidArgument(MapHostStore(bytes).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(AllocateDeviceStore(backend, bytes).status()));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(AllocateDeviceStore(backend, 2 * kSequenceBytes).status()));
}

TEST(DeviceStore, FreesWithoutAskingADeviceThatIsLost) {
  const auto backend = std::make_shared<KeepingBackend>(2 * kSequenceBytes);
  auto memory = AllocateDeviceStore(backend, 2 * kSequenceBytes);
  ASSERT_TRUE(memory.ok());
  auto store = Store::Create(*std::move(memory), 100);
  ASSERT_TRUE(Put(*store, "a").ok());
  ASSERT_TRUE(Put(*store, "b").ok());
  auto held = *store->Find("b");
  backend->lost = true;
  const int calls = backend->calls;
  EXPECT_TRUE(store->Delete("a"));
  EXPECT_EQ(store->UsedBytes(), kSequenceBytes);
  std::byte one[1];
  EXPECT_TRUE(absl::IsInternal(held->CopyOut(held->Keys(0).Address(0, 0), one)));
  EXPECT_TRUE(absl::IsInternal(held->CopyIn(one, held->Keys(0).Address(0, 0))));
  // Pages that could not be zeroed go to nobody, and are not lost to the store.
  EXPECT_TRUE(absl::IsInternal(Put(*store, "c")));
  EXPECT_EQ(store->UsedBytes(), kSequenceBytes);
  store->Release("b");
  held.reset();
  EXPECT_TRUE(absl::IsInternal(store->AllocateDense(InfoOf("d", 2 * 64)).status()));
  EXPECT_EQ(store->UsedBytes(), 0);
  store.reset();
  EXPECT_EQ(backend->calls, calls);
  EXPECT_EQ(backend->buffers, 0);
}

TEST(DeviceStore, KeepsItsBackendForLateHolders) {
  auto backend = std::make_shared<KeepingBackend>(kSequenceBytes);
  const std::weak_ptr<KeepingBackend> watched = backend;
  auto memory = AllocateDeviceStore(std::move(backend), kSequenceBytes);
  ASSERT_TRUE(memory.ok());
  auto store = Store::Create(*std::move(memory), 100);
  auto held = *store->AllocateDense(InfoOf("a", 64));
  store.reset();
  Fill(*held, held->Values(2).Address(1, 63), 128, 7);
  EXPECT_TRUE(Holds(*held, held->Values(2).Address(1, 63), 128, 7));
  held.reset();
  EXPECT_TRUE(watched.expired());
}

TEST_P(StoreTest, CopiesNothingBeyondTheSequencesOwnPages) {
  const auto store = MakeStore(3);
  const auto first = *store->AllocatePacked(InfoOf("a", 64), kSequenceBytes);
  const auto second = *store->AllocatePacked(InfoOf("b", 64), kSequenceBytes);
  const std::vector<std::byte> bytes(2);
  std::byte* const begin = second->Blocks().data();
  std::byte* const end = begin + kSequenceBytes;
  EXPECT_TRUE(second->CopyIn(bytes, begin).ok());
  EXPECT_TRUE(second->CopyIn(bytes, end - 2).ok());
  GTEST_FLAG_SET(death_test_style, "fast");
  for (std::byte* const at : {begin - 2, begin - 1, end - 1, end}) {
    EXPECT_DEATH(second->CopyIn(bytes, at).IgnoreError(), "");
  }
}

TEST_P(StoreTest, TakesAMeanKeyBeforeItIsPublished) {
  const auto store = MakeStore(1);
  auto sequence = *store->AllocatePacked(InfoOf("a", 64), 100);
  sequence->SetMeanKey(std::vector<Float16>(384));
  ASSERT_TRUE(store->Publish(std::move(sequence), Store::Commit::kNew, 0).ok());
  EXPECT_EQ((*store->Peek("a"))->Info().mean_key.size(), 384u);
}

TEST_P(StoreTest, DroppingAnUnpublishedSequenceGivesItsRoomBack) {
  const auto store = MakeStore(1);
  store->AllocateDense(InfoOf("a", 64)).IgnoreError();
  EXPECT_EQ(store->UsedBytes(), 0);
}

TEST_P(StoreTest, FreedMemoryIsZeroWhenItIsGivenOutAgain) {
  const auto store = MakeStore(1);
  for (int round = 0; round < 20; ++round) {
    const auto sequence = store->AllocatePacked(InfoOf("a", 64), kSequenceBytes);
    ASSERT_TRUE(sequence.ok());
    const auto blocks = (*sequence)->Blocks();
    ASSERT_TRUE(Holds(**sequence, blocks.data(), std::ssize(blocks), 0));
    Fill(**sequence, blocks.data(), std::ssize(blocks), 0x5C);
  }
}

TEST_P(StoreTest, HoldersKeepDeletedMemory) {
  const auto store = MakeStore(1);
  ASSERT_TRUE(Put(*store, "a").ok());
  auto held = *store->Find("a");
  Fill(*held, held->Keys(0).Address(0, 0), 64, 7);
  EXPECT_TRUE(store->Delete("a"));
  EXPECT_FALSE(store->Delete("a"));
  EXPECT_EQ(ReasonOf(store->Find("a").status()), "SEQUENCE_UNKNOWN");
  EXPECT_EQ(store->UsedBytes(), kSequenceBytes);
  EXPECT_EQ(store->AllocateDense(InfoOf("b", 64)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Holds(*held, held->Keys(0).Address(0, 0), 64, 7));
  held.reset();
  EXPECT_EQ(store->UsedBytes(), 0);
}

TEST_P(StoreTest, HoldersOutliveTheStore) {
  auto store = MakeStore(1);
  auto held = *store->AllocateDense(InfoOf("a", 64));
  store.reset();
  Fill(*held, held->Keys(0).Address(0, 0), 64, 7);
  EXPECT_TRUE(Holds(*held, held->Keys(0).Address(0, 0), 64, 7));
}

TEST_P(StoreTest, EvictsTheLeastRecentlyUsedReleasedSequenceWhenFull) {
  const auto store = MakeStore(3);
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(Put(*store, id).ok());
  ASSERT_TRUE(store->Find("a").ok());  // now used after b
  EXPECT_TRUE(store->Release("a"));
  EXPECT_TRUE(store->Release("b"));
  EXPECT_TRUE(store->IsReleased("b"));
  ASSERT_TRUE(Put(*store, "d").ok());
  EXPECT_EQ(store->Evictions(), 1);
  EXPECT_FALSE(store->Find("b").ok());
  EXPECT_TRUE(store->Find("a").ok());
  EXPECT_FALSE(store->IsReleased("a"));  // finding it uses it
}

TEST_P(StoreTest, PeekingNeitherTakesAReleaseBackNorCountsAsUse) {
  const auto store = MakeStore(2);
  for (const char* id : {"a", "b"}) {
    ASSERT_TRUE(Put(*store, id).ok());
    store->Release(id);
  }
  ASSERT_TRUE(store->Peek("a").ok());
  EXPECT_TRUE(store->IsReleased("a"));
  EXPECT_EQ(ReasonOf(store->Peek("x").status()), "SEQUENCE_UNKNOWN");
  ASSERT_TRUE(Put(*store, "c").ok());
  EXPECT_FALSE(store->Peek("a").ok());  // still the least recently used
  store->Touch("b");
  EXPECT_FALSE(store->IsReleased("b"));
}

TEST_P(StoreTest, NeverEvictsWhatIsNotReleasedOrIsHeld) {
  const auto store = MakeStore(2);
  ASSERT_TRUE(Put(*store, "a").ok());
  ASSERT_TRUE(Put(*store, "b").ok());
  const auto held = *store->Find("a");
  EXPECT_TRUE(store->Release("a"));
  EXPECT_EQ(Put(*store, "c").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store->Evictions(), 0);
  EXPECT_EQ(store->List().size(), 2u);
}

TEST_P(StoreTest, EvictsNobodyForARequestThatStillWouldNotFit) {
  const auto store = MakeStore(3);
  for (const char* id : {"a", "b", "c"}) ASSERT_TRUE(Put(*store, id).ok());
  store->Release("a");
  store->Release("b");
  EXPECT_EQ(store->AllocateDense(InfoOf("big", 3 * 64)).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store->Evictions(), 0);
  ASSERT_TRUE(store->AllocateDense(InfoOf("fits", 2 * 64)).ok());
  EXPECT_EQ(store->Evictions(), 2);
}

TEST_P(StoreTest, PublishRejectsATakenId) {
  const auto store = MakeStore(3);
  ASSERT_TRUE(Put(*store, "a").ok());
  EXPECT_EQ(Put(*store, "a").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store->UsedBytes(), kSequenceBytes);
}

TEST_P(StoreTest, ReplaceNeedsTheEpochItSaw) {
  const auto store = MakeStore(3);
  ASSERT_TRUE(Put(*store, "a").ok());
  StoredInfo info = InfoOf("a", 60);
  info.epoch = 1;
  auto next = *store->AllocateDense(info);
  EXPECT_EQ(ReasonOf(store->Publish(next, Store::Commit::kReplace, 5)), "EPOCH_MISMATCH");
  EXPECT_EQ((*store->Find("a"))->Info().num_tokens, 64);
  EXPECT_TRUE(store->Publish(next, Store::Commit::kReplace, 0).ok());
  EXPECT_EQ((*store->Find("a"))->Info().num_tokens, 60);
  EXPECT_EQ(store->UsedBytes(), kSequenceBytes);  // the old one is gone
  EXPECT_EQ(ReasonOf(store->Publish(next, Store::Commit::kReplace, 0)), "EPOCH_MISMATCH");
  store->Delete("a");
  EXPECT_EQ(ReasonOf(store->Publish(next, Store::Commit::kReplace, 1)), "SEQUENCE_UNKNOWN");
}

TEST_P(StoreTest, HoldsAtMostMaxSequences) {
  const auto owned = MakeStore(100, /*max_sequences=*/2);
  Store& store = *owned;
  ASSERT_TRUE(Put(store, "a").ok());
  ASSERT_TRUE(Put(store, "b").ok());
  EXPECT_EQ(Put(store, "c").code(), absl::StatusCode::kResourceExhausted);
  store.Release("b");
  EXPECT_TRUE(Put(store, "c").ok());
  EXPECT_EQ(store.Evictions(), 1);
  EXPECT_FALSE(store.Release("b"));
}

TEST_P(StoreTest, ThreadsShareIt) {
  const auto store = MakeStore(4);
  const auto work = [&](int thread) {
    for (int round = 0; round < 200; ++round) {
      const std::string id = std::to_string(thread * 1000 + round);
      auto sequence = store->AllocateDense(InfoOf(id, 64));
      if (!sequence.ok()) continue;
      std::byte* row = (*sequence)->Keys(0).Address(1, 3);
      EXPECT_TRUE(Holds(**sequence, row, 1, 0));
      Fill(**sequence, row, 1, 9);
      EXPECT_TRUE(store->Publish(*std::move(sequence), Store::Commit::kNew, 0).ok());
      store->Release(id);
      if (round % 3 == 0) store->Delete(id);
    }
  };
  std::thread first(work, 1);
  std::thread second(work, 2);
  first.join();
  second.join();
  EXPECT_LE(store->UsedBytes(), store->CapacityBytes());
  EXPECT_GT(store->Evictions(), 0);
}

}  // namespace
}  // namespace kvern::memory
