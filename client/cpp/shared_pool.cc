// Layout of the memory: [layers][k, v][blocks][kv_heads][block_tokens][head_dim], one region.
#include "client/cpp/shared_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cpp/proto_types.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::client {
namespace {

constexpr absl::Duration kBrokerTimeout = absl::Seconds(10);

absl::Status MemoryError(const char* what, int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("shared memory of ", bytes, " bytes: ", what,
                                                   " failed: ", std::strerror(errno)));
}

// A mapped memfd whose size nobody can change any more.
class SealedMemory {
 public:
  static absl::StatusOr<SealedMemory> Create(int64_t bytes) {
    SealedMemory memory;
    memory.fd_ = memfd_create("kvern-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory.fd_ < 0) return MemoryError("memfd_create", bytes);
    if (ftruncate(memory.fd_, bytes) != 0) return MemoryError("ftruncate", bytes);
    if (fcntl(memory.fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
      return MemoryError("sealing", bytes);
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd_, 0);
    if (data == MAP_FAILED) return MemoryError("mmap", bytes);
    memory.bytes_ = {static_cast<std::byte*>(data), static_cast<size_t>(bytes)};
    return memory;
  }
  ~SealedMemory() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
    if (fd_ >= 0) close(fd_);
  }
  SealedMemory(SealedMemory&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), bytes_(std::exchange(other.bytes_, {})) {}

  int Descriptor() const { return fd_; }
  std::byte* Data() const { return bytes_.data(); }

 private:
  SealedMemory() = default;
  int fd_ = -1;
  std::span<std::byte> bytes_;
};

// Bytes of the keys, or of the values, of one layer. Errors: InvalidArgument.
absl::StatusOr<int64_t> PlaneBytes(const SharedPoolOptions& options) {
  const int64_t factors[] = {options.num_blocks, options.kv_heads, options.block_tokens,
                             options.head_dim, SizeOf(options.dtype)};
  int64_t bytes = 1;
  for (const int64_t factor : factors) {
    if (factor < 1 || __builtin_mul_overflow(bytes, factor, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("pool: got ", options.num_blocks, " blocks of ", options.block_tokens,
                       " tokens, ", options.kv_heads, " kv_heads of ", options.head_dim,
                       " dims, want sizes of 1 or more whose product fits 64 bits"));
    }
  }
  return bytes;
}

}  // namespace

struct SharedPool::State {
  SharedPoolOptions options;
  int64_t plane_bytes = 0;
  SealedMemory memory;
  std::optional<BrokerConnection> broker;
  std::optional<Client> client;
  std::string name;
  std::vector<bool> used;  // [num_blocks]

  int64_t Layers() const { return static_cast<int64_t>(options.layers.size()); }
  int64_t TokenBytes() const { return options.head_dim * SizeOf(options.dtype); }
  int64_t HeadBytes() const { return options.block_tokens * TokenBytes(); }
  int64_t BlockBytes() const { return options.kv_heads * HeadBytes(); }

  v1::Pool Describe(const std::string& attachment_id) const {
    v1::Pool pool;
    pool.set_model(options.model);
    pool.set_dtype(ToProto(options.dtype));
    pool.set_block_tokens(options.block_tokens);
    pool.set_num_blocks(options.num_blocks);
    pool.add_regions()->set_attachment_id(attachment_id);
    pool.set_max_shape_class(options.max_shape_class);
    pool.set_engine(options.engine);
    for (int64_t slot = 0; slot < Layers(); ++slot) {
      v1::PoolLayer* layer = pool.add_layers();
      layer->set_layer(options.layers[slot]);
      Describe(2 * slot, layer->mutable_k());
      Describe(2 * slot + 1, layer->mutable_v());
    }
    return pool;
  }
  void Describe(int64_t plane, v1::KvView* view) const {
    view->set_base_offset(plane * plane_bytes);
    view->set_block_stride(BlockBytes());
    view->set_head_stride(HeadBytes());
    view->set_token_stride(TokenBytes());
    view->set_dim_stride(SizeOf(options.dtype));
  }
  KvRef View(int64_t plane, std::span<const uint32_t> block_ids, int64_t tokens) const {
    KvRef ref;
    ref.dtype = options.dtype;
    ref.kv_heads = options.kv_heads;
    ref.head_dim = options.head_dim;
    ref.tokens = tokens;
    ref.block_tokens = options.block_tokens;
    ref.base = memory.Data() + plane * plane_bytes;
    ref.strides = {BlockBytes(), HeadBytes(), TokenBytes(), SizeOf(options.dtype)};
    ref.block_ids = block_ids.data();
    return ref;
  }
  absl::Status CheckTable(std::span<const uint32_t> block_ids, int64_t tokens) const {
    const int64_t want = (tokens + options.block_tokens - 1) / options.block_tokens;
    if (tokens < 0 || static_cast<int64_t>(block_ids.size()) < want) {
      return absl::InvalidArgumentError(absl::StrCat("block_ids: got ", block_ids.size(), " for ",
                                                     tokens, " tokens, want ", want));
    }
    for (const uint32_t id : block_ids) {
      if (id >= options.num_blocks) {
        return absl::InvalidArgumentError(
            absl::StrCat("block_ids: got ", id, ", want less than ", options.num_blocks));
      }
    }
    return absl::OkStatus();
  }
  // Visits every run of tokens that lies in one block: fn(address in the pool, offset in the dense
  // plane of this layer, bytes).
  template <class Fn>
  void ForEachRun(const KvRef& view, Fn&& fn) const {
    for (int64_t head = 0; head < options.kv_heads; ++head) {
      for (int64_t token = 0; token < view.tokens; token += options.block_tokens) {
        const int64_t count = std::min<int64_t>(options.block_tokens, view.tokens - token);
        fn(view.Address(head, token), (head * view.tokens + token) * TokenBytes(),
           static_cast<size_t>(count * TokenBytes()));
      }
    }
  }
};

SharedPool::SharedPool(std::unique_ptr<State> state) : state_(std::move(state)) {}
SharedPool::SharedPool(SharedPool&&) noexcept = default;
SharedPool& SharedPool::operator=(SharedPool&&) noexcept = default;

SharedPool::~SharedPool() {
  if (state_ == nullptr || state_->name.empty()) return;
  // The closing socket ends the pool too; asking first ends it before this call returns.
  state_->client->UnregisterPool(state_->name).IgnoreError();
}

absl::StatusOr<SharedPool> SharedPool::Create(const Client& client,
                                              const SharedPoolOptions& options) {
  KVERN_ASSIGN_OR_RETURN(const int64_t plane_bytes, PlaneBytes(options));
  int64_t bytes = 0;
  if (options.layers.empty() ||
      __builtin_mul_overflow(plane_bytes, int64_t{2} * options.layers.size(), &bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("pool: got ", options.layers.size(),
                                                   " layers, want 1 or more that fit 64 bits"));
  }
  KVERN_ASSIGN_OR_RETURN(BrokerConnection broker, ConnectBroker(client));
  KVERN_ASSIGN_OR_RETURN(SealedMemory memory, SealedMemory::Create(bytes));
  KVERN_ASSIGN_OR_RETURN(const std::string attachment_id, broker.Attach(memory.Descriptor()));

  auto state = std::make_unique<State>(State{.options = options,
                                             .plane_bytes = plane_bytes,
                                             .memory = std::move(memory),
                                             .broker = std::move(broker),
                                             .client = client,
                                             .name = {},
                                             .used = std::vector<bool>(options.num_blocks)});
  KVERN_ASSIGN_OR_RETURN(const v1::RegisterPoolResponse response,
                         client.RegisterPool(state->Describe(attachment_id)));
  state->name = response.pool().name();
  return SharedPool(std::move(state));
}

const std::string& SharedPool::Name() const { return state_->name; }

int64_t SharedPool::NumFreeBlocks() const {
  return std::count(state_->used.begin(), state_->used.end(), false);
}

absl::StatusOr<std::vector<uint32_t>> SharedPool::AllocateBlocks(int64_t count) {
  if (count < 0 || count > NumFreeBlocks()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("pool: got a request for ", count, " blocks, want at most ", NumFreeBlocks()));
  }
  std::vector<uint32_t> ids;
  ids.reserve(count);
  for (uint32_t id = 0; static_cast<int64_t>(ids.size()) < count; ++id) {
    if (state_->used[id]) continue;
    state_->used[id] = true;
    ids.push_back(id);
  }
  return ids;
}

void SharedPool::FreeBlocks(std::span<const uint32_t> block_ids) {
  for (const uint32_t id : block_ids) {
    if (id >= state_->options.num_blocks || !state_->used[id]) continue;
    state_->used[id] = false;
    for (int64_t plane = 0; plane < 2 * state_->Layers(); ++plane) {
      std::memset(state_->memory.Data() + plane * state_->plane_bytes + id * state_->BlockBytes(),
                  0, state_->BlockBytes());
    }
  }
}

int64_t SharedPool::BlocksFor(int64_t tokens) const {
  const int64_t block_tokens = state_->options.block_tokens;
  return (tokens + block_tokens - 1) / block_tokens;
}

KvRef SharedPool::Keys(int64_t layer_slot, std::span<const uint32_t> block_ids,
                       int64_t tokens) const {
  return state_->View(2 * layer_slot, block_ids, tokens);
}

KvRef SharedPool::Values(int64_t layer_slot, std::span<const uint32_t> block_ids,
                         int64_t tokens) const {
  return state_->View(2 * layer_slot + 1, block_ids, tokens);
}

absl::Status SharedPool::Write(const DenseCache& cache, std::span<const uint32_t> block_ids) {
  const State& state = *state_;
  KVERN_RETURN_IF_ERROR(state.CheckTable(block_ids, cache.tokens));
  const int64_t layer_bytes = state.options.kv_heads * cache.tokens * state.TokenBytes();
  const size_t want = static_cast<size_t>(state.Layers() * layer_bytes);
  if (cache.k.size() != want || cache.v.size() != want) {
    return absl::InvalidArgumentError(absl::StrCat("cache: got ", cache.k.size(), " bytes of k, ",
                                                   cache.v.size(), " of v, want ", want));
  }
  for (int64_t slot = 0; slot < state.Layers(); ++slot) {
    const auto copy_from = [&](std::span<const std::byte> dense) {
      return
          [from = dense.data() + slot * layer_bytes](std::byte* to, int64_t offset, size_t bytes) {
            std::memcpy(to, from + offset, bytes);
          };
    };
    state.ForEachRun(Keys(slot, block_ids, cache.tokens), copy_from(cache.k));
    state.ForEachRun(Values(slot, block_ids, cache.tokens), copy_from(cache.v));
  }
  return absl::OkStatus();
}

absl::Status SharedPool::Read(std::span<const uint32_t> block_ids, int64_t tokens, std::string* k,
                              std::string* v) const {
  const State& state = *state_;
  KVERN_RETURN_IF_ERROR(state.CheckTable(block_ids, tokens));
  const int64_t layer_bytes = state.options.kv_heads * tokens * state.TokenBytes();
  k->resize(state.Layers() * layer_bytes);
  v->resize(state.Layers() * layer_bytes);
  for (int64_t slot = 0; slot < state.Layers(); ++slot) {
    const auto copy_to = [&](std::string* dense) {
      return [to = dense->data() + slot * layer_bytes](const std::byte* from, int64_t offset,
                                                       size_t bytes) {
        std::memcpy(to + offset, from, bytes);
      };
    };
    state.ForEachRun(Keys(slot, block_ids, tokens), copy_to(k));
    state.ForEachRun(Values(slot, block_ids, tokens), copy_to(v));
  }
  return absl::OkStatus();
}

std::vector<std::string> BrokerPaths(const std::string& server_address,
                                     const std::string& broker_address) {
  std::vector<std::string> paths;
  absl::string_view named = broker_address;
  absl::ConsumePrefix(&named, "unix:");
  if (named.empty()) return paths;
  absl::string_view socket = server_address;
  if (absl::ConsumePrefix(&socket, "unix:") && absl::ConsumeSuffix(&socket, ".sock")) {
    absl::ConsumePrefix(&socket, "//");
    // A container may see the server's directory under another name.
    paths.push_back(absl::StrCat(socket, ".broker.sock"));
  }
  if (paths.empty() || paths[0] != named) paths.emplace_back(named);
  return paths;
}

absl::StatusOr<BrokerConnection> ConnectBroker(const Client& client) {
  KVERN_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse info, client.GetServerInfo());
  absl::StatusOr<BrokerConnection> broker =
      WithReason(absl::FailedPreconditionError(
                     "pool: this server has no handle broker, want a server on a Unix socket"),
                 "BROKER_MISSING");
  for (const std::string& path : BrokerPaths(client.Address(), info.broker_address())) {
    broker = BrokerConnection::Connect(path, kBrokerTimeout);
    if (broker.ok()) break;
  }
  return broker;
}

}  // namespace kvern::client
