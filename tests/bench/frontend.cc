// Keys and values are random, blocks come from the pool's allocator: what a call costs is the call.
#include "tests/bench/frontend.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/bench/layer.h"
#include "client/cpp/upload.h"
#include "kernels/base/status_macros.h"

namespace kvern::bench {
namespace {

v1::Model SomeModel() {
  v1::Model model;
  model.mutable_spec()->set_num_layers(1);
  model.mutable_spec()->set_q_heads(kQHeads);
  model.mutable_spec()->set_kv_heads(kKvHeads);
  model.mutable_spec()->set_head_dim(kHeadDim);
  model.mutable_spec()->mutable_rope()->set_theta(10000);
  return model;
}

void FillPolicy(v1::Placement placement, v1::Policy* policy) {
  policy->mutable_budget()->set_keep_ratio(0.5);
  policy->add_scorers()->set_name("key_norm");
  policy->set_placement(placement);
}

// Keys or values of one layer, [kv_heads, tokens, head_dim] bf16.
std::string SomeBytes(int64_t tokens, uint64_t seed) {
  std::string bytes(kKvHeads * tokens * kHeadDim * 2, '\0');
  auto* to = reinterpret_cast<BFloat16*>(bytes.data());
  const std::vector<float> normals = NormalFloats(kSmallTokens * kHeadDim, seed);
  for (size_t i = 0; i < bytes.size() / 2; ++i) {
    to[i] = FromFloat<BFloat16>(normals[i % normals.size()]);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<Frontend> Frontend::Connect(const std::string& address) {
  KVERN_ASSIGN_OR_RETURN(client::Client client, client::Client::Connect(address));
  KVERN_ASSIGN_OR_RETURN(const v1::Model model, client.RegisterModel(SomeModel()));
  client::SharedPoolOptions options;
  options.model = model.name();
  options.kv_heads = kKvHeads;
  options.head_dim = kHeadDim;
  options.layers = {0};
  options.block_tokens = kPoolBlockTokens;
  options.num_blocks = 3 * kLongTokens / kPoolBlockTokens;
  KVERN_ASSIGN_OR_RETURN(client::SharedPool pool, client::SharedPool::Create(client, options));
  return Frontend(std::move(client), model.name(), std::move(pool));
}

absl::StatusOr<std::vector<uint32_t>> Frontend::Place(int64_t tokens) {
  KVERN_ASSIGN_OR_RETURN(std::vector<uint32_t> blocks,
                         pool_.AllocateBlocks(pool_.BlocksFor(tokens)));
  const std::string k = SomeBytes(tokens, 1), v = SomeBytes(tokens, 2);
  KVERN_RETURN_IF_ERROR(
      pool_.Write({std::as_bytes(std::span(k)), std::as_bytes(std::span(v)), tokens}, blocks));
  return blocks;
}

v1::CompressCacheRequest Frontend::Request(v1::Placement placement) const {
  v1::CompressCacheRequest request;
  request.set_model(model_);
  FillPolicy(placement, request.mutable_policy());
  return request;
}

absl::StatusOr<v1::CompressCacheRequest> Frontend::Pooled(v1::Placement placement, int64_t tokens,
                                                          int count) {
  v1::CompressCacheRequest request = Request(placement);
  for (int i = 0; i < count; ++i) {
    KVERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> blocks, Place(tokens));
    v1::SequenceRequest* sequence = request.add_sequences();
    sequence->set_sequence_id(absl::StrCat(static_cast<int>(placement), "/", tokens, "/", i));
    v1::PagedSource* paged = sequence->mutable_paged();
    paged->set_pool(pool_.Name());
    paged->set_num_tokens(tokens);
    paged->mutable_block_ids()->Assign(blocks.begin(), blocks.end());
    if (placement != v1::PLACEMENT_COPY_TO) continue;
    KVERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> destination,
                           pool_.AllocateBlocks(pool_.BlocksFor(tokens / 2)));
    paged->mutable_destination_block_ids()->Assign(destination.begin(), destination.end());
  }
  return request;
}

v1::CompressCacheRequest Frontend::Inline(v1::Placement placement, int64_t tokens) const {
  v1::CompressCacheRequest request = Request(placement);
  for (const char* path : {"kept", "k", "v"}) request.mutable_response_mask()->add_paths(path);
  v1::SequenceRequest* sequence = request.add_sequences();
  sequence->set_sequence_id("inline");
  v1::InlineSource* source = sequence->mutable_inline_();
  source->add_layer_indices(0);
  v1::Tensor* tensors[] = {source->mutable_k(), source->mutable_v()};
  for (int role = 0; role < 2; ++role) {
    tensors[role]->set_dtype(v1::DTYPE_BF16);
    for (const int64_t extent : {int64_t{1}, kKvHeads, tokens, kHeadDim}) {
      tensors[role]->add_shape(extent);
    }
    tensors[role]->set_data(SomeBytes(tokens, 1 + role));
  }
  return request;
}

Frontend::Stored Frontend::ToStore(int64_t tokens) const {
  Stored stored = {{}, tokens, SomeBytes(tokens, 1), SomeBytes(tokens, 2)};
  stored.header.set_name("sequences/bench");
  stored.header.set_model(model_);
  stored.header.add_layer_indices(0);
  stored.header.set_dtype(v1::DTYPE_BF16);
  return stored;
}

absl::Status Frontend::Put(const Stored& stored) const {
  const client::DenseCache cache = {std::as_bytes(std::span(stored.k)),
                                    std::as_bytes(std::span(stored.v)), stored.tokens};
  return client::PutSequence(client_, stored.header, cache, /*progress=*/nullptr).status();
}

absl::StatusOr<v1::CompressCacheResponse> Frontend::Call(v1::CompressCacheRequest& request) {
  epoch_ += 2;
  for (v1::SequenceRequest& sequence : *request.mutable_sequences()) sequence.set_epoch(epoch_);
  KVERN_ASSIGN_OR_RETURN(v1::CompressCacheResponse response, client_.Compress(request));
  for (const v1::SequenceResult& result : response.results()) {
    KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
  }
  return response;
}

}  // namespace kvern::bench
