// Geometry and policy are those of frontend.cc; an answer is read where the worker made it.
#include "tests/bench/in_process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <semaphore>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/bench/layer.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/frontend.h"

namespace kvern::bench {
namespace {

constexpr char kModel[] = "bench";
constexpr char kPool[] = "bench";

int64_t BlocksFor(int64_t tokens) { return (tokens + kPoolBlockTokens - 1) / kPoolBlockTokens; }

pipeline::ModelSpec SomeModel() {
  pipeline::ModelSpec spec;
  spec.num_layers = 1;
  spec.q_heads = kQHeads;
  spec.kv_heads = kKvHeads;
  spec.head_dim = kHeadDim;
  return spec;
}

// [num_blocks, kv_heads, block_tokens, head_dim] of keys, then of values.
absl::StatusOr<std::shared_ptr<memory::Region>> SomeMemory(int64_t bytes) {
  const int fd = memfd_create("bench", MFD_ALLOW_SEALING | MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, bytes) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
    return absl::ResourceExhaustedError("bench: got no memory for a pool");
  }
  KVERN_ASSIGN_OR_RETURN(std::shared_ptr<memory::Region> region, memory::Region::Map(fd, getuid()));
  auto* values = reinterpret_cast<BFloat16*>(region->Data());
  const std::vector<float> normals = NormalFloats(kSmallTokens * kHeadDim, /*seed=*/1);
  for (int64_t i = 0; i < bytes / 2; ++i) {
    values[i] = FromFloat<BFloat16>(normals[i % normals.size()]);
  }
  return region;
}

}  // namespace

absl::StatusOr<std::unique_ptr<InProcess>> InProcess::Start(const Options& options) {
  std::unique_ptr<InProcess> bench(new InProcess(options));
  Limits limits;
  limits.store_bytes = int64_t{1} << 20;
  KVERN_ASSIGN_OR_RETURN(auto backend, MakeBackend(options.backend));
  KVERN_ASSIGN_OR_RETURN(bench->engine_,
                         engine::Engine::Create({.limits = limits, .backend = std::move(backend)}));
  engine::RegisteredModel model;
  model.id = kModel;
  model.spec = SomeModel();
  KVERN_RETURN_IF_ERROR(bench->engine_->Models().Register(model).status());
  KVERN_RETURN_IF_ERROR(bench->AddPool());
  return bench;
}

absl::Status InProcess::AddPool() {
  memory::PoolSpec spec;
  spec.id = kPool;
  spec.model = kModel;
  spec.kv_heads = kKvHeads;
  spec.head_dim = kHeadDim;
  spec.block_tokens = kPoolBlockTokens;
  spec.num_blocks =
      options_.sequences * (BlocksFor(options_.tokens) + BlocksFor(options_.tokens / 2));
  const int64_t row_bytes = kHeadDim * 2;
  const int64_t head_bytes = kPoolBlockTokens * row_bytes;
  const int64_t role_bytes = spec.num_blocks * kKvHeads * head_bytes;
  KVERN_ASSIGN_OR_RETURN(const auto region, SomeMemory(2 * role_bytes));
  spec.regions = {engine_->Attachments().Attach(region, /*connection=*/1)};
  const KvStrides strides = {kKvHeads * head_bytes, head_bytes, row_bytes, 2};
  spec.layers = {{0, {0, 0, strides}, {0, role_bytes, strides}}};
  return engine_->Pools().Register(spec).status();
}

engine::CompressJob InProcess::Job(pipeline::Placement placement) {
  epoch_ += 2;
  engine::CompressJob job;
  job.model = kModel;
  job.policy.budget = pipeline::KeepRatioBudget{0.5};
  job.policy.scorers = {{"key_norm", {}}};
  job.policy.placement = placement;
  job.cancelled = std::make_shared<std::atomic<bool>>(false);
  uint32_t next = 0;
  const auto blocks = [&next](int64_t tokens) {
    std::vector<uint32_t> ids(BlocksFor(tokens));
    std::iota(ids.begin(), ids.end(), next);
    next += ids.size();
    return ids;
  };
  for (int at = 0; at < options_.sequences; ++at) {
    engine::SequenceJob& sequence = job.sequences.emplace_back();
    sequence.sequence_id = absl::StrCat("sequence ", at);
    sequence.epoch = epoch_;
    engine::PagedSource paged;
    paged.pool = kPool;
    paged.num_tokens = options_.tokens;
    paged.block_ids = blocks(options_.tokens);
    std::vector<uint32_t> fresh = blocks(options_.tokens / 2);
    if (placement == pipeline::Placement::kCopyTo) paged.destination_block_ids = std::move(fresh);
    sequence.source = std::move(paged);
  }
  return job;
}

absl::Status InProcess::Call(engine::CompressJob job) {
  std::binary_semaphore ended(0);
  absl::Status status;
  engine_->Compress(std::move(job), [&](const absl::StatusOr<engine::CompressResult>& answer) {
    status = answer.status();
    for (size_t at = 0; status.ok() && at < answer->results.size(); ++at) {
      status = answer->results[at].status;
    }
    ended.release();
  });
  ended.acquire();
  return status;
}

}  // namespace kvern::bench
