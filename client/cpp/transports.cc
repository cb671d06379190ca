// Where the result may land decides the way back: COPY_TO blocks are read in place, the store is
// fetched.
#include "client/cpp/transports.h"

#include <numeric>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "client/cpp/proto_types.h"
#include "client/cpp/shared_pool.h"
#include "client/cpp/upload.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::client {
namespace {

constexpr int32_t kPoolBlockTokens = 64;

void FillTensor(const CacheShape& shape, std::span<const std::byte> bytes, v1::Tensor* tensor) {
  tensor->set_dtype(ToProto(shape.dtype));
  for (const int64_t extent : {shape.layers, shape.kv_heads, shape.tokens, shape.head_dim}) {
    tensor->add_shape(extent);
  }
  tensor->set_data(bytes.data(), bytes.size());
}

// The only sequence's result; its faults become the call's.
absl::StatusOr<v1::SequenceResult> CompressOne(const Client& client,
                                               const v1::CompressCacheRequest& request) {
  KVERN_ASSIGN_OR_RETURN(v1::CompressCacheResponse response, client.Compress(request));
  if (response.results_size() != 1) {
    return absl::InternalError(
        absl::StrCat("the server answered ", response.results_size(), " sequences, want 1"));
  }
  KVERN_RETURN_IF_ERROR(SequenceStatus(response.results(0)));
  return std::move(*response.mutable_results(0));
}

// Asks for TO_STORE, takes the result out of the store and leaves nothing there.
absl::StatusOr<Carried> CompressToStore(const Client& client, v1::CompressCacheRequest request,
                                        const Progress& progress) {
  request.mutable_policy()->set_placement(v1::PLACEMENT_TO_STORE);
  Carried carried;
  KVERN_ASSIGN_OR_RETURN(carried.result, CompressOne(client, request));
  if (request.validate_only() || carried.result.stored_sequence().empty()) return carried;
  const std::string stored = carried.result.stored_sequence();
  const absl::Cleanup forget = [&] { client.DeleteSequence(stored).IgnoreError(); };
  KVERN_ASSIGN_OR_RETURN(FetchedSequence fetched,
                         FetchSequence(client, stored, FetchForm::kAsStored, progress));
  carried.k = std::move(fetched.k);
  carried.v = std::move(fetched.v);
  if (fetched.header.packed_table().empty()) return carried;
  carried.packed.set_table(std::move(*fetched.header.mutable_packed_table()));
  carried.packed.set_mean_key(std::move(*fetched.header.mutable_mean_key()));
  carried.packed.set_dtype(fetched.header.sequence().dtype());
  carried.packed.set_blocks(std::move(fetched.packed));
  return carried;
}

// Whether the result will be packed, which only the store can hold. A guess that spares the server
// a refused call: what it does not foresee comes back as CODEC_NEEDS_STORE.
bool ExpectsPacked(const v1::Policy& policy) {
  if (policy.has_codecs()) {
    const auto dense = [](const std::string& codec) { return codec.empty() || codec == "raw16"; };
    return !dense(policy.codecs().k()) || !dense(policy.codecs().v());
  }
  return !policy.preset().empty() && policy.preset() != "evict50";
}

std::vector<int32_t> LayersOf(const CacheFile& cache) {
  std::vector<int32_t> layers = cache.LayerIndices();
  if (layers.empty()) {
    layers.resize(cache.Shape().layers);
    std::iota(layers.begin(), layers.end(), 0);
  }
  return layers;
}

}  // namespace

absl::StatusOr<Carried> CarryInline(const Client& client, const CacheFile& cache,
                                    v1::CompressCacheRequest request) {
  request.mutable_policy()->set_placement(v1::PLACEMENT_RETURN);
  v1::InlineSource* source = request.mutable_sequences(0)->mutable_inline_();
  const std::vector<int32_t> layers = cache.LayerIndices();
  source->mutable_layer_indices()->Assign(layers.begin(), layers.end());
  FillTensor(cache.Shape(), cache.K(), source->mutable_k());
  FillTensor(cache.Shape(), cache.V(), source->mutable_v());
  Carried carried;
  KVERN_ASSIGN_OR_RETURN(carried.result, CompressOne(client, request));
  carried.k = std::move(*carried.result.mutable_k()->mutable_data());
  carried.v = std::move(*carried.result.mutable_v()->mutable_data());
  carried.packed = std::move(*carried.result.mutable_packed());
  return carried;
}

absl::StatusOr<Carried> CarryThroughStore(const Client& client, const CacheFile& cache,
                                          v1::CompressCacheRequest request,
                                          const Progress& progress) {
  v1::SequenceRequest* sequence = request.mutable_sequences(0);
  v1::StoredSequence header;
  header.set_name(absl::StrCat("sequences/", sequence->sequence_id(), ".source"));
  header.set_model(request.model());
  const std::vector<int32_t> layers = cache.LayerIndices();
  header.mutable_layer_indices()->Assign(layers.begin(), layers.end());
  header.set_dtype(ToProto(cache.Shape().dtype));
  header.set_num_logical_tokens(sequence->num_logical_tokens());
  *header.mutable_positions() = std::move(*sequence->mutable_positions());
  sequence->clear_positions();
  KVERN_RETURN_IF_ERROR(
      PutSequence(client, header, {cache.K(), cache.V(), cache.Shape().tokens}, progress).status());
  const absl::Cleanup forget = [&] { client.DeleteSequence(header.name()).IgnoreError(); };
  sequence->mutable_stored()->set_sequence(header.name());
  return CompressToStore(client, std::move(request), progress);
}

absl::StatusOr<Carried> CarryThroughPool(const Client& client, const CacheFile& cache,
                                         v1::CompressCacheRequest request,
                                         const Progress& progress) {
  const CacheShape& shape = cache.Shape();
  SharedPoolOptions options;
  options.model = request.model();
  options.dtype = shape.dtype;
  options.kv_heads = static_cast<int32_t>(shape.kv_heads);
  options.head_dim = static_cast<int32_t>(shape.head_dim);
  options.layers = LayersOf(cache);
  options.block_tokens = kPoolBlockTokens;
  const int64_t blocks = (shape.tokens + kPoolBlockTokens - 1) / kPoolBlockTokens;
  options.num_blocks = std::max<int64_t>(1, 2 * blocks);  // the source, and room for its copy
  KVERN_ASSIGN_OR_RETURN(SharedPool pool, SharedPool::Create(client, options));
  KVERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> source, pool.AllocateBlocks(blocks));
  KVERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> target, pool.AllocateBlocks(blocks));
  KVERN_RETURN_IF_ERROR(pool.Write({cache.K(), cache.V(), shape.tokens}, source));

  v1::SequenceRequest* sequence = request.mutable_sequences(0);
  v1::PagedSource* paged = sequence->mutable_paged();
  paged->set_pool(pool.Name());
  paged->set_num_tokens(shape.tokens);
  paged->mutable_block_ids()->Assign(source.begin(), source.end());
  const std::vector<int32_t> lengths = cache.Lengths();
  paged->mutable_lengths()->Assign(lengths.begin(), lengths.end());
  const absl::Cleanup forget = [&, id = sequence->sequence_id()] {
    client.ReleaseSequences({id}).IgnoreError();
  };

  if (ExpectsPacked(request.policy())) {
    return CompressToStore(client, std::move(request), progress);
  }
  request.mutable_policy()->set_placement(v1::PLACEMENT_COPY_TO);
  paged->mutable_destination_block_ids()->Assign(target.begin(), target.end());
  absl::StatusOr<v1::SequenceResult> result = CompressOne(client, request);
  if (ReasonOf(result.status()) == "CODEC_NEEDS_STORE") {
    paged->clear_destination_block_ids();
    return CompressToStore(client, std::move(request), progress);
  }
  KVERN_RETURN_IF_ERROR(result.status());
  Carried carried;
  carried.result = *std::move(result);
  if (request.validate_only() || carried.result.outcome() == v1::OUTCOME_NOOP) return carried;
  const std::vector<uint32_t> kept(carried.result.block_ids().begin(),
                                   carried.result.block_ids().end());
  KVERN_RETURN_IF_ERROR(
      pool.Read(kept, carried.result.num_physical_tokens(), &carried.k, &carried.v));
  return carried;
}

}  // namespace kvern::client
