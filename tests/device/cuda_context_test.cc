// What the device context promises: copies of any size and shape arrive, waits end in time, a lost
// device is not touched again, and what others send cannot pass for a loss.
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/runtime/faults.h"
#include "tests/support/host_kv.h"

namespace kvern::cuda {
namespace {

using std::chrono::steady_clock;

constexpr int64_t kMiB = int64_t{1} << 20;

class FiresWhenTold final : public StopCheck {
 public:
  absl::Status Check() const override {
    return fired ? absl::DeadlineExceededError("too late") : absl::OkStatus();
  }
  std::atomic<bool> fired = false;
};

class CudaContextTest : public testing::Test {
 protected:
  CudaContextTest() { simt::Faults::Clear(); }
  ~CudaContextTest() override {
    backend_.reset();
    simt::Faults::Clear();
  }
  void Make(double hang_seconds) {
    auto made = CudaBackend::Make({.scratch_bytes = 64 * kMiB, .hang_seconds = hang_seconds});
    ASSERT_TRUE(made.ok()) << made.status();
    backend_ = *std::move(made);
  }
  static double SecondsSince(steady_clock::time_point start) {
    return std::chrono::duration<double>(steady_clock::now() - start).count();
  }
  static std::vector<std::byte> Counted(int64_t bytes) {
    std::vector<std::byte> data(static_cast<size_t>(bytes));
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 131 >> 3);
    return data;
  }
  // The device breaks at its next call.
  static void Break(simt::FaultKind kind) { simt::Faults::Inject({kind, 1, ""}); }

  std::unique_ptr<Backend> backend_;
};

TEST(Arena, TakesLongLivesFromTheLowEndAndJoinsGapsAgain) {
  std::byte base[16];  // its address is all that counts
  Arena arena(base, 4096 + 100);
  EXPECT_EQ(arena.bytes(), 4096);
  std::byte* const low = arena.Allocate(1, Arena::End::kLow);
  std::byte* const high = arena.Allocate(257, Arena::End::kHigh);
  EXPECT_EQ(low, base);
  EXPECT_EQ(high, base + 4096 - 512);
  std::byte* const rest = arena.Allocate(4096 - 256 - 512, Arena::End::kHigh);
  EXPECT_EQ(rest, base + 256);
  EXPECT_EQ(arena.Allocate(1, Arena::End::kLow), nullptr);
  EXPECT_EQ(arena.FreeBytes(), 0);
  arena.Free(low, 1);
  arena.Free(high, 257);
  EXPECT_EQ(arena.Allocate(512 + 1, Arena::End::kLow), nullptr);
  arena.Free(rest, 4096 - 256 - 512);
  EXPECT_EQ(arena.Allocate(4096, Arena::End::kHigh), base);
}

TEST_F(CudaContextTest, CopiesMoreThanAllPinnedMemoryHolds) {
  Make(/*hang_seconds=*/10);
  const std::vector<std::byte> sent = Counted(19 * kMiB + 5);
  absl::StatusOr<Buffer> buffer = backend_->Allocate(19 * kMiB + 5);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  ASSERT_TRUE(backend_->CopyIn(sent, buffer->data()).ok());
  std::vector<std::byte> got(sent.size());
  ASSERT_TRUE(backend_->CopyOut(buffer->data(), got).ok());
  EXPECT_EQ(got, sent);
  ASSERT_TRUE(backend_->Zero(buffer->data() + 3, 4).ok());
  ASSERT_TRUE(backend_->CopyOut(buffer->data(), std::span(got).first(8)).ok());
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(got[i], i >= 3 && i < 7 ? std::byte{0} : sent[i]) << i;
  }
}

TEST_F(CudaContextTest, CopiesOfSeveralThreadsDoNotMix) {
  Make(/*hang_seconds=*/10);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&, thread] {
      absl::StatusOr<Buffer> buffer = backend_->Allocate(kMiB);
      std::vector<std::byte> sent(kMiB, static_cast<std::byte>(thread + 1));
      std::vector<std::byte> got(kMiB);
      for (int turn = 0; turn < 5; ++turn) {
        const bool copied = buffer.ok() && backend_->CopyIn(sent, buffer->data()).ok() &&
                            backend_->CopyOut(buffer->data(), got).ok();
        if (!copied || got != sent) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Every few tokens of every row: what the copy on the device holds is what the host's rows hold.
void ExpectSameRows(Backend& backend, const KvRef& staged, const KvRef& host) {
  const int64_t size = SizeOf(host.dtype);
  std::vector<std::byte> row(static_cast<size_t>(host.head_dim * size));
  for (int64_t head = 0; head < host.kv_heads; ++head) {
    for (int64_t token = 0; token < host.Length(head); token += 61) {
      ASSERT_TRUE(backend.CopyOut(staged.Address(head, token), row).ok());
      const std::byte* const want = host.Address(head, token);
      for (int64_t d = 0; d < host.head_dim; ++d) {
        ASSERT_EQ(std::memcmp(&row[d * size], want + d * host.strides.dim, size), 0)
            << "head " << head << " token " << token << " dim " << d;
      }
    }
  }
}

TEST_F(CudaContextTest, StagesRowsOfAnyLayoutDense) {
  Make(/*hang_seconds=*/10);
  std::vector<support::HostKvSpec> specs = support::ParitySpecs();
  // More than pinned memory holds.
  specs.push_back({.dtype = DType::kF32,
                   .layers = 2,
                   .kv_heads = 2,
                   .tokens = 18000,
                   .head_dim = 128,
                   .order = support::BlockOrder::kShuffled});
  for (const support::HostKvSpec& spec : specs) {
    SCOPED_TRACE(support::Describe(spec));
    const support::HostKv host = support::RandomKv(spec, /*seed=*/3);
    const absl::StatusOr<StagedRows> staged = backend_->Stage(host.refs());
    ASSERT_TRUE(staged.ok()) << staged.status();
    ASSERT_EQ(staged->rows.size(), host.refs().size());
    for (size_t layer = 0; layer < staged->rows.size(); ++layer) {
      ExpectSameRows(*backend_, staged->rows[layer], host.refs()[layer]);
    }
  }
}

TEST_F(CudaContextTest, RefusesMoreThanWasReservedAndWorksOn) {
  Make(/*hang_seconds=*/10);
  EXPECT_TRUE(absl::IsResourceExhausted(backend_->Allocate(65 * kMiB).status()));
  EXPECT_TRUE(backend_->Allocate(64 * kMiB).ok());
  EXPECT_TRUE(backend_->Health().ok());
}

// No check fires: the bound is that of hang_seconds.
TEST_F(CudaContextTest, FindsADeviceLostThatDoesNotFinish) {
  Make(/*hang_seconds=*/0.3);
  Break(simt::FaultKind::kHang);
  const auto start = steady_clock::now();
  EXPECT_TRUE(absl::IsInternal(backend_->Finish()));
  EXPECT_LT(SecondsSince(start), 1.0);
  EXPECT_EQ(ReasonOf(backend_->Health()), "DEVICE_LOST");
}

TEST_F(CudaContextTest, ACallThatIsTooLateEndsWithinASecondThoughTheDeviceHangs) {
  absl::StatusOr<Buffer> buffer;
  std::vector<std::byte> host(64);
  float score = 1;
  const std::function<absl::Status()> calls[] = {
      [&] { return backend_->Finish(); },
      [&] { return backend_->CopyIn(host, buffer->data()); },
      [&] { return backend_->CopyOut(buffer->data(), host); },
      [&] { return backend_->Zero(buffer->data(), 64); },
      [&] { return backend_->Scale(2, DenseView(&score, 1, 1, 1)); },
  };
  for (size_t call = 0; call < std::size(calls); ++call) {
    SCOPED_TRACE(call);
    simt::Faults::Clear();
    Make(/*hang_seconds=*/60);
    buffer = backend_->Allocate(64);
    ASSERT_TRUE(buffer.ok());
    FiresWhenTold stop;
    backend_->Bind(&stop);
    Break(simt::FaultKind::kHang);
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      stop.fired = true;
    });
    const auto start = steady_clock::now();
    EXPECT_TRUE(absl::IsInternal(calls[call]()));
    later.join();
    EXPECT_LT(SecondsSince(start), 1.05);
    EXPECT_FALSE(backend_->Health().ok());
    buffer = Buffer();
    backend_.reset();
  }
}

TEST_F(CudaContextTest, NothingCallsADeviceThatIsLost) {
  for (const simt::FaultKind kind :
       {simt::FaultKind::kIllegalAddress, simt::FaultKind::kEcc, simt::FaultKind::kDeviceLost}) {
    simt::Faults::Clear();
    Make(/*hang_seconds=*/10);
    absl::StatusOr<Buffer> buffer = backend_->Allocate(64);
    ASSERT_TRUE(buffer.ok());
    Break(kind);
    const absl::Status lost = backend_->Finish();
    EXPECT_TRUE(absl::IsInternal(lost));
    EXPECT_EQ(ReasonOf(lost), "DEVICE_LOST");
    EXPECT_EQ(lost.message().find("0x"), absl::string_view::npos) << lost;
    const int64_t calls = simt::Faults::Calls();
    std::vector<std::byte> host(64);
    std::vector<float> scores(8);
    EXPECT_EQ(backend_->Health(), lost);
    EXPECT_EQ(backend_->Scale(2, DenseView(scores.data(), 1, 1, 8)), lost);
    EXPECT_EQ(backend_->CopyIn(host, buffer->data()), lost);
    EXPECT_EQ(backend_->CopyOut(buffer->data(), host), lost);
    EXPECT_EQ(backend_->Zero(buffer->data(), 64), lost);
    EXPECT_EQ(backend_->Finish(), lost);
    EXPECT_EQ(backend_->Lap().status(), lost);
    EXPECT_EQ(backend_->Allocate(1).status(), lost);
    EXPECT_EQ(backend_->Import({}).status(), lost);
    EXPECT_EQ(backend_->Device()->name.empty(), false);
    buffer = Buffer();
    backend_.reset();
    EXPECT_EQ(simt::Faults::Calls(), calls);
  }
}

class ImportTest : public CudaContextTest {
 protected:
  ImportTest() { Make(/*hang_seconds=*/10); }
  absl::Status Import(const DeviceHandle& handle) { return backend_->Import(handle).status(); }
  DeviceHandle Handle() const {
    DeviceHandle handle;
    handle.device_uuid = backend_->Device()->uuid;
    handle.size_bytes = 64;
    return handle;
  }
};

TEST_F(ImportTest, AHandleThatDoesNotOpenIsNoLossOfTheDevice) {
  DeviceHandle noise = Handle();
  noise.ipc.fill(std::byte{0x5A});
  EXPECT_EQ(ReasonOf(Import(noise)), "HANDLE_KIND_MISMATCH");

  // CUDA refuses memory of the process itself with an error that elsewhere means a dead context.
  DeviceHandle own = Handle();
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 4096), cudaSuccess);
  cudaIpcMemHandle_t ipc;
  ASSERT_EQ(cudaIpcGetMemHandle(&ipc, memory), cudaSuccess);
  std::memcpy(own.ipc.data(), &ipc, sizeof(ipc));
  EXPECT_EQ(ReasonOf(Import(own)), "HANDLE_KIND_MISMATCH");
  cudaFree(memory);

  DeviceHandle file = Handle();
  file.kind = DeviceHandle::Kind::kFile;
  file.file = 0;  // whatever it is
  EXPECT_TRUE(absl::IsInvalidArgument(Import(file)));
  file.file = -1;
  EXPECT_TRUE(absl::IsInvalidArgument(Import(file)));

  EXPECT_TRUE(backend_->Health().ok()) << backend_->Health();
  std::vector<float> scores(8, 1.0f);
  EXPECT_TRUE(backend_->Scale(2, DenseView(scores.data(), 1, 1, 8)).ok());
  EXPECT_EQ(scores[7], 2.0f);
}

TEST_F(ImportTest, ADeviceThatIsLostWhileOpeningIsNoBadHandle) {
  simt::Faults::Inject({simt::FaultKind::kEcc, 1, "cudaIpcOpenMemHandle"});
  EXPECT_EQ(ReasonOf(Import(Handle())), "DEVICE_LOST");
  EXPECT_EQ(ReasonOf(backend_->Health()), "DEVICE_LOST");
}

TEST_F(CudaContextTest, IsFoundByIndexOrUuidAndSaysWhatIsWrongElse) {
  Make(/*hang_seconds=*/10);
  const std::string uuid = backend_->Device()->uuid;
  EXPECT_EQ(uuid.size(), 40u);
  EXPECT_EQ(uuid.substr(0, 4), "GPU-");
  EXPECT_TRUE(CudaBackend::Make({.device = uuid, .scratch_bytes = kMiB}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(CudaBackend::Make({.device = "7"}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      CudaBackend::Make({.device = "GPU-00000000-0000-0000-0000-000000000000"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(CudaBackend::Make({.device = "first"}).status()));
}

}  // namespace
}  // namespace kvern::cuda
