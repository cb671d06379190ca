// A real engine on the ref backend, with a real pool in a memfd, for tests of what it promises.
#ifndef KVERN_TESTS_UNIT_SERVER_ENGINE_ENGINE_FIXTURE_H_
#define KVERN_TESTS_UNIT_SERVER_ENGINE_ENGINE_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "kernels/backends.h"
#include "kernels/base/error_reason.h"
#include "server/engine/engine.h"
#include "server/engine/failpoint.h"

namespace kvern::engine {

inline constexpr int64_t kLayers = 2;
inline constexpr int64_t kKvHeads = 2;
inline constexpr int64_t kHeadDim = 16;
inline constexpr int64_t kBlockTokens = 4;
inline constexpr int64_t kBlocks = 64;
inline constexpr int64_t kRowBytes = kHeadDim * 2;  // bf16

inline pipeline::ModelSpec SmallModel() {
  pipeline::ModelSpec spec;
  spec.num_layers = kLayers;
  spec.q_heads = 4;
  spec.kv_heads = kKvHeads;
  spec.head_dim = kHeadDim;
  for (int band = 0; band < kHeadDim / 2; ++band) {
    spec.rope.inv_freq.push_back(static_cast<float>(std::pow(1e4, -2.0 * band / kHeadDim)));
  }
  return spec;
}

// Counts, and calls back where a test wants to stand in the worker's way.
class FakeEvents : public EngineEvents {
 public:
  void OnSequence(const SequenceResult& result, memory::EngineLabel) override {
    {
      const absl::MutexLock lock(&mutex_);
      ++outcomes_[result.outcome];
    }
    if (on_sequence) on_sequence(result);
  }
  void OnStage(const std::string& stage, const std::string& name, double) override {
    const absl::MutexLock lock(&mutex_);
    stages_.insert(stage + "/" + name);
  }
  void OnRejected(Rejection reason) override {
    const absl::MutexLock lock(&mutex_);
    ++rejected_[reason];
  }
  void OnReplay(memory::EngineLabel) override { Count("replay"); }
  void OnEpochConflict(memory::EngineLabel) override { Count("epoch"); }
  void OnPoisoned(memory::EngineLabel) override { Count("poisoned"); }
  void OnPoolEvent(PoolEvent event) override {
    Count(event == PoolEvent::kPeerDied ? "peer_died" : "pool");
  }
  void OnStoreEviction() override { Count("eviction"); }

  int Outcomes(Outcome outcome) const {
    const absl::MutexLock lock(&mutex_);
    return outcomes_.count(outcome) ? outcomes_.at(outcome) : 0;
  }
  int Rejected(Rejection reason) const {
    const absl::MutexLock lock(&mutex_);
    return rejected_.count(reason) ? rejected_.at(reason) : 0;
  }
  int Counted(const std::string& what) const {
    const absl::MutexLock lock(&mutex_);
    return counts_.count(what) ? counts_.at(what) : 0;
  }
  std::set<std::string> Stages() const {
    const absl::MutexLock lock(&mutex_);
    return stages_;
  }

  std::function<void(const SequenceResult&)> on_sequence;  // set before the engine runs

 private:
  void Count(const std::string& what) {
    const absl::MutexLock lock(&mutex_);
    ++counts_[what];
  }
  mutable absl::Mutex mutex_;
  std::map<Outcome, int> outcomes_;
  std::map<Rejection, int> rejected_;
  std::map<std::string, int> counts_;
  std::set<std::string> stages_;
};

class EngineTest : public testing::Test {
 protected:
  EngineTest() { Start(Limits()); }
  ~EngineTest() override { ClearFailpoints(); }

  void Start(Limits limits) {
    engine_.reset();
    pool_memory_.reset();
    limits.store_bytes = std::min<int64_t>(limits.store_bytes, int64_t{16} << 20);
    auto engine =
        Engine::Create({.limits = limits, .backend = make_backend_(), .events = &events_});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    RegisteredModel model;
    model.id = "small";
    model.spec = SmallModel();
    ASSERT_TRUE(engine_->Models().Register(model).ok());
    AddPool("pool", [](memory::PoolSpec*) {});
  }

  // A pool over its own memfd: for each layer K then V, blocks of [kv_heads, block_tokens,
  // head_dim].
  void AddPool(const std::string& id, const std::function<void(memory::PoolSpec*)>& change) {
    const int64_t block_bytes = kKvHeads * kBlockTokens * kRowBytes;
    const int64_t view_bytes = kBlocks * block_bytes;
    const bool shared = id == "pool" && shared_memory_ != nullptr;
    const auto region = shared ? shared_memory_ : MakeMemory(2 * kLayers * view_bytes);
    ASSERT_NE(region, nullptr);
    memory::PoolSpec spec;
    spec.id = id;
    spec.model = "small";
    spec.dtype = DType::kBF16;
    spec.kv_heads = kKvHeads;
    spec.head_dim = kHeadDim;
    spec.block_tokens = kBlockTokens;
    spec.num_blocks = kBlocks;
    spec.engine = memory::EngineLabel::kVllm;
    spec.regions = {engine_->Attachments().Attach(region, kConnection)};
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const KvStrides strides = {block_bytes, kBlockTokens * kRowBytes, kRowBytes, 2};
      spec.layers.push_back({static_cast<int32_t>(layer),
                             {0, 2 * layer * view_bytes, strides},
                             {0, (2 * layer + 1) * view_bytes, strides}});
    }
    change(&spec);
    const auto pool = engine_->Pools().Register(spec);
    ASSERT_TRUE(pool.ok()) << pool.status();
    if (id != "pool") return;
    pool_ = *pool;
    pool_memory_ = region;
    if (!shared) FillPool(/*seed=*/7);
  }

  static std::shared_ptr<memory::Region> MakeMemory(int64_t bytes) {
    const int fd = memfd_create("pool", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, bytes) != 0) return nullptr;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) return nullptr;
    auto region = memory::Region::Map(fd, getuid());
    return region.ok() ? *std::move(region) : nullptr;
  }

  void FillPool(uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    auto* values = reinterpret_cast<BFloat16*>(pool_memory_->Data());
    for (int64_t i = 0; i < pool_memory_->SizeBytes() / 2; ++i) {
      values[i] = FromFloat<BFloat16>(normal(random));
    }
  }

  std::vector<std::byte> Snapshot() const {
    return {pool_memory_->Data(), pool_memory_->Data() + pool_memory_->SizeBytes()};
  }

  // Bytes of one row as they lie in a copy of the pool.
  struct RowAt {
    Role role;
    int64_t layer, head, slot;
  };
  static std::vector<std::byte> Row(const std::vector<std::byte>& memory,
                                    const std::vector<uint32_t>& blocks, const RowAt& at) {
    const int64_t block_bytes = kKvHeads * kBlockTokens * kRowBytes;
    const int64_t view = 2 * at.layer + (at.role == Role::kValue ? 1 : 0);
    const int64_t offset = view * kBlocks * block_bytes +
                           blocks[at.slot / kBlockTokens] * block_bytes +
                           at.head * kBlockTokens * kRowBytes + at.slot % kBlockTokens * kRowBytes;
    return {memory.begin() + offset, memory.begin() + offset + kRowBytes};
  }

  // Blocks of `memory` outside `written` hold what they held in `before`.
  static void ExpectOnlyWritten(const std::vector<std::byte>& before,
                                const std::vector<std::byte>& after,
                                const std::set<uint32_t>& written) {
    const int64_t block_bytes = kKvHeads * kBlockTokens * kRowBytes;
    for (size_t at = 0; at < before.size(); at += block_bytes) {
      const auto block = static_cast<uint32_t>(at / block_bytes % kBlocks);
      if (written.contains(block)) continue;
      ASSERT_TRUE(
          std::equal(before.begin() + at, before.begin() + at + block_bytes, after.begin() + at))
          << "block " << block;
    }
  }

  static pipeline::Policy KeyNorm(int64_t tokens, pipeline::Placement placement) {
    pipeline::Policy policy;
    policy.budget = pipeline::TokenBudget{tokens};
    policy.scorers = {{"key_norm", {}}};
    policy.sink_tokens = 1;
    policy.recent_tokens = 2;
    policy.recent_share = 0.0;
    policy.placement = placement;
    return policy;
  }

  // 18 tokens in blocks 9, 3, 12, 5, 7, with fresh blocks 20..24.
  static SequenceJob Paged(const std::string& id) {
    SequenceJob sequence;
    sequence.sequence_id = id;
    PagedSource paged;
    paged.pool = "pool";
    paged.block_ids = {9, 3, 12, 5, 7};
    paged.num_tokens = 18;
    paged.destination_block_ids = {20, 21, 22, 23, 24};
    sequence.source = paged;
    return sequence;
  }
  static PagedSource& PagedOf(SequenceJob& sequence) {
    return std::get<PagedSource>(sequence.source);
  }

  static CompressJob Job(pipeline::Policy policy, std::vector<SequenceJob> sequences) {
    CompressJob job;
    job.peer = "uid:1000";
    job.model = "small";
    job.policy = std::move(policy);
    job.sequences = std::move(sequences);
    job.cancelled = std::make_shared<std::atomic<bool>>(false);
    return job;
  }

  // The one result of a call that must succeed as a whole.
  SequenceResult RunOne(pipeline::Policy policy, SequenceJob sequence) {
    const auto answer = engine_->CompressAndWait(Job(std::move(policy), {std::move(sequence)}));
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? answer->results.at(0) : SequenceResult();
  }

  static constexpr int64_t kConnection = 11;

  FakeEvents events_;
  // What Start gives the engine.
  std::function<std::unique_ptr<Backend>()> make_backend_ = [] {
    return MakeBackend({.name = "ref"}).value();
  };
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<const memory::Pool> pool_;
  std::shared_ptr<memory::Region> pool_memory_;
  std::shared_ptr<memory::Region> shared_memory_;  // set: the pool's, across engines and processes
};

}  // namespace kvern::engine

#endif  // KVERN_TESTS_UNIT_SERVER_ENGINE_ENGINE_FIXTURE_H_
