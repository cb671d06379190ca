// One request for one sequence; what comes back is checked against its own counts before it is
// used.
#include "client/cpp/compress_file.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/proto_types.h"
#include "client/cpp/transports.h"
#include "kernels/base/status_macros.h"

namespace kvern::client {
namespace {

// Unlikely to meet another client's: ids are shared by all callers of a server.
std::string NewSequenceId() {
  std::random_device entropy;
  return absl::StrFormat("kvern-%d-%08x%08x", getpid(), entropy(), entropy());
}

bool NamesNothing(const v1::Policy& policy) {
  return policy.preset().empty() && !policy.has_budget() && !policy.has_budgeter() &&
         policy.scorers().empty() && !policy.has_selector() && !policy.has_codecs() &&
         !policy.has_sink_tokens() && !policy.has_recent_tokens() && !policy.has_recent_share() &&
         policy.positions() != v1::POSITION_MODE_RENUMBER;
}

void FillSide(const CacheFile& cache, const std::string& name, v1::Tensor* tensor) {
  const formats::TensorEntry* entry = cache.Contents().Find(name);
  tensor->set_dtype(ToProto(FromFileDType(entry->dtype).value_or(DType::kF32)));
  tensor->mutable_shape()->Assign(entry->shape.begin(), entry->shape.end());
  tensor->set_data(entry->bytes.data(), entry->bytes.size());
}

v1::CompressCacheRequest RequestFor(const CacheFile& cache, const CompressOptions& options) {
  v1::CompressCacheRequest request;
  request.set_model(options.model);
  *request.mutable_policy() = options.policy;
  // A paged request that names nothing would get the preset for stock engines (ruling 1).
  if (NamesNothing(options.policy)) request.mutable_policy()->set_preset("balanced");
  request.set_validate_only(options.extent == Extent::kPlan);
  auto* mask = request.mutable_response_mask();
  mask->add_paths("kept");
  mask->add_paths("positions");
  if (options.with_scores) mask->add_paths("scores");
  if (options.extent == Extent::kCompress) {
    for (const char* path : {"k", "v", "packed"}) mask->add_paths(path);
  }
  v1::SequenceRequest* sequence = request.add_sequences();
  sequence->set_sequence_id(NewSequenceId());
  sequence->set_num_logical_tokens(cache.LogicalTokens());
  if (cache.Contents().Find("positions") != nullptr) {
    *sequence->mutable_positions() = cache.Positions();
  }
  v1::SideTensors* side = sequence->mutable_side();
  if (cache.Contents().Find("q_window") != nullptr) {
    FillSide(cache, "q_window", side->mutable_q_window());
  }
  if (cache.Contents().Find("attention_mass") != nullptr) {
    FillSide(cache, "attention_mass", side->mutable_attention_mass());
  }
  if (cache.Contents().Find("external_scores") != nullptr) {
    FillSide(cache, "external_scores", side->mutable_external_scores());
  }
  return request;
}

absl::StatusOr<Transport> Choose(const Client& client, const CacheFile& cache, Transport via) {
  if (via != Transport::kAuto) return via;
  KVERN_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse info, client.GetServerInfo());
  const bool local_socket = absl::StartsWith(client.Address(), "unix:");
  if (local_socket && !info.broker_address().empty()) return Transport::kPool;
  const auto limit = info.limits().find("inline-bytes");
  const int64_t inline_bytes = limit == info.limits().end() ? 0 : limit->second;
  return 2 * cache.Shape().PlaneBytes() <= inline_bytes ? Transport::kInline : Transport::kStore;
}

absl::StatusOr<Carried> Carry(const Client& client, const CacheFile& cache,
                              const CompressOptions& options, Transport via) {
  v1::CompressCacheRequest request = RequestFor(cache, options);
  switch (via) {
    case Transport::kPool:
      return CarryThroughPool(client, cache, std::move(request), options.progress);
    case Transport::kStore:
      return CarryThroughStore(client, cache, std::move(request), options.progress);
    case Transport::kAuto:
    case Transport::kInline:
      break;
  }
  return CarryInline(client, cache, std::move(request));
}

// Only a pool's block tables say how many tokens each row holds.
absl::Status CheckRows(const CacheFile& cache, Transport via) {
  if (via == Transport::kPool || cache.Lengths().empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("'", cache.Path(), "': its rows hold different numbers of tokens, which only ",
                   "shared memory carries, want a server on a Unix socket; got ", Name(via)));
}

std::vector<int32_t> ToInts(const std::string& bytes) {
  std::vector<int32_t> values(bytes.size() / sizeof(int32_t));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(int32_t));
  return values;
}

// An unchanged cache: the answer of a NOOP carries no bytes.
void FillIdentity(const CacheFile& cache, CompressedCache* out) {
  const CacheShape& shape = cache.Shape();
  out->shape.tokens = shape.tokens;
  out->k.assign(reinterpret_cast<const char*>(cache.K().data()), cache.K().size());
  out->v.assign(reinterpret_cast<const char*>(cache.V().data()), cache.V().size());
  out->kept_counts = cache.Lengths();
  if (out->kept_counts.empty()) {
    out->kept_counts.assign(shape.Rows(), static_cast<int32_t>(shape.tokens));
  }
  const v1::Positions source = cache.Positions();
  out->kept.assign(shape.Rows() * shape.tokens, -1);
  out->positions = out->kept;
  for (int64_t row = 0; row < shape.Rows(); ++row) {
    for (int32_t slot = 0; slot < out->kept_counts[row]; ++slot) {
      const int64_t at = row * shape.tokens + slot;
      out->kept[at] = slot;
      out->positions[at] = source.values().empty() ? slot
                           : source.per_head()     ? source.values(static_cast<int>(at))
                                                   : source.values(slot);
    }
  }
}

// Slots beyond a row's count hold what was in the blocks before.
void ZeroUnusedSlots(CompressedCache* out) {
  const int64_t slot_bytes = out->shape.head_dim * SizeOf(out->shape.dtype);
  for (int64_t row = 0; row < out->shape.Rows(); ++row) {
    const int64_t begin = (row * out->shape.tokens + out->kept_counts[row]) * slot_bytes;
    const int64_t size = (out->shape.tokens - out->kept_counts[row]) * slot_bytes;
    std::memset(out->k.data() + begin, 0, size);
    std::memset(out->v.data() + begin, 0, size);
  }
}

// The server may be another version, or broken: its tensors are used only if they fit its counts.
absl::Status CheckResult(const CompressedCache& cache) {
  const int64_t rows = cache.shape.Rows();
  const auto outside = [&](int32_t count) { return count < 0 || count > cache.shape.tokens; };
  const bool counts_fit = std::ssize(cache.kept_counts) == rows &&
                          std::none_of(cache.kept_counts.begin(), cache.kept_counts.end(), outside);
  const int64_t slots = rows * cache.shape.tokens;
  const bool tables_fit =
      std::ssize(cache.kept) == slots && std::ssize(cache.positions) == slots &&
      (cache.scores.empty() || std::ssize(cache.scores) == rows * cache.source_tokens * 4);
  const int64_t plane = cache.Packed() ? 0 : cache.shape.PlaneBytes();
  if (counts_fit && tables_fit && std::ssize(cache.k) == plane && std::ssize(cache.v) == plane &&
      cache.packed_table.size() % 64 == 0) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat("the server's answer does not fit itself: got ",
                                          cache.kept_counts.size(), " counts, ", cache.kept.size(),
                                          " indices, ", cache.positions.size(), " positions, ",
                                          cache.k.size(), " bytes of k, want ", rows, " counts, ",
                                          slots, " indices and positions, ", plane, " bytes of k"));
}

}  // namespace

const char* Name(Transport transport) {
  switch (transport) {
    case Transport::kPool:
      return "pool";
    case Transport::kInline:
      return "inline";
    case Transport::kStore:
      return "store";
    case Transport::kAuto:
      break;
  }
  return "auto";
}

absl::StatusOr<CompressedCache> CompressFile(const Client& client, const CacheFile& cache,
                                             const CompressOptions& options) {
  if (cache.Packed()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", cache.Path(), "' is packed already, want k and v: decode it with `kvern unpack`"));
  }
  KVERN_ASSIGN_OR_RETURN(const Transport via, Choose(client, cache, options.via));
  KVERN_RETURN_IF_ERROR(CheckRows(cache, via));
  KVERN_ASSIGN_OR_RETURN(Carried carried, Carry(client, cache, options, via));
  CompressedCache out;
  out.via = via;
  out.shape = cache.Shape();
  out.source_tokens = cache.Shape().tokens;
  out.kept_counts.assign(carried.result.kept_counts().begin(), carried.result.kept_counts().end());
  out.kept = ToInts(carried.result.kept());
  out.positions = ToInts(carried.result.positions());
  out.scores = std::move(*carried.result.mutable_scores());
  for (const auto clear : {&v1::SequenceResult::clear_kept, &v1::SequenceResult::clear_positions,
                           &v1::SequenceResult::clear_scores, &v1::SequenceResult::clear_k,
                           &v1::SequenceResult::clear_v, &v1::SequenceResult::clear_packed}) {
    (carried.result.*clear)();
  }
  out.result = std::move(carried.result);
  out.shape.tokens = 0;
  for (const int32_t count : out.kept_counts) {
    out.shape.tokens = std::max<int64_t>(out.shape.tokens, count);
  }
  if (options.extent == Extent::kPlan) return out;

  out.k = std::move(carried.k);
  out.v = std::move(carried.v);
  out.packed_table = std::move(*carried.packed.mutable_table());
  out.packed_mean_key = std::move(*carried.packed.mutable_mean_key());
  out.packed = std::move(*carried.packed.mutable_blocks());
  if (out.result.outcome() == v1::OUTCOME_NOOP && out.k.empty() && !out.Packed()) {
    FillIdentity(cache, &out);
  }
  KVERN_RETURN_IF_ERROR(CheckResult(out));
  if (!out.Packed()) ZeroUnusedSlots(&out);
  return out;
}

}  // namespace kvern::client
