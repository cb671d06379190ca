// Cases served by a real kvernd over gRPC: its pool is shared memory, its store a stream away.
#ifndef KVERN_TESTS_INTEGRATION_EQUALITY_WIRE_SIDE_H_
#define KVERN_TESTS_INTEGRATION_EQUALITY_WIRE_SIDE_H_

#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/proto_types.h"
#include "client/cpp/shared_pool.h"
#include "client/cpp/upload.h"
#include "kernels/base/status_macros.h"
#include "tests/integration/equality/answer.h"
#include "tests/support/server_process.h"

namespace kvern::equality {

inline void ToProto(const pipeline::StageSpec& spec, v1::StageSpec* out) {
  out->set_name(spec.name);
  out->mutable_params()->insert(spec.params.begin(), spec.params.end());
}

inline void ToProto(const pipeline::Budget& budget, v1::Budget* out) {
  if (const auto* tokens = std::get_if<pipeline::TokenBudget>(&budget)) {
    out->set_tokens(tokens->tokens);
  } else if (const auto* bytes = std::get_if<pipeline::ByteBudget>(&budget)) {
    out->set_bytes(bytes->bytes);
  } else {
    out->set_keep_ratio(std::get<pipeline::KeepRatioBudget>(budget).ratio);
  }
}

inline v1::OnConflict ToProto(pipeline::OnConflict on_conflict) {
  return on_conflict == pipeline::OnConflict::kFail         ? v1::ON_CONFLICT_FAIL
         : on_conflict == pipeline::OnConflict::kGrowBudget ? v1::ON_CONFLICT_GROW_BUDGET
                                                            : v1::ON_CONFLICT_TRIM_OLDEST;
}

inline v1::Placement ToProto(pipeline::Placement placement) {
  return static_cast<v1::Placement>(static_cast<int>(placement));  // same order
}

inline v1::Policy ToProto(const pipeline::Policy& policy) {
  v1::Policy out;
  out.set_preset(policy.preset);
  out.set_profile(policy.profile);
  if (policy.budget) ToProto(*policy.budget, out.mutable_budget());
  if (policy.budgeter) ToProto(*policy.budgeter, out.mutable_budgeter());
  for (const pipeline::StageSpec& scorer : policy.scorers) ToProto(scorer, out.add_scorers());
  if (policy.blend) {
    out.set_blend(*policy.blend == BlendKind::kMax ? v1::BLEND_MAX : v1::BLEND_SUM);
  }
  if (policy.selector) ToProto(*policy.selector, out.mutable_selector());
  if (policy.k_codec) out.mutable_codecs()->set_k(*policy.k_codec);
  if (policy.v_codec) out.mutable_codecs()->set_v(*policy.v_codec);
  if (policy.sink_tokens) out.set_sink_tokens(*policy.sink_tokens);
  if (policy.recent_tokens) out.set_recent_tokens(*policy.recent_tokens);
  if (policy.recent_share) out.set_recent_share(*policy.recent_share);
  out.set_positions(policy.positions == pipeline::PositionMode::kRenumber
                        ? v1::POSITION_MODE_RENUMBER
                        : v1::POSITION_MODE_KEEP_LOGICAL);
  out.set_placement(ToProto(policy.placement));
  out.set_on_conflict(ToProto(policy.on_conflict));
  return out;
}

inline v1::Model ToProto(const support::Geometry& geometry) {
  v1::Model model;
  model.set_name("models/" + geometry.id);
  v1::ModelSpec* spec = model.mutable_spec();
  spec->set_num_layers(geometry.model.num_layers);
  spec->set_q_heads(geometry.model.q_heads);
  spec->set_kv_heads(geometry.model.kv_heads);
  spec->set_head_dim(geometry.model.head_dim);
  const pipeline::RopeSpec& rope = geometry.model.rope;
  if (rope.inv_freq.empty()) return model;
  spec->mutable_rope()->set_layout(rope.layout == RopeLayout::kHalf ? v1::ROPE_LAYOUT_HALF
                                                                    : v1::ROPE_LAYOUT_INTERLEAVED);
  spec->mutable_rope()->mutable_inv_freq()->Assign(rope.inv_freq.begin(), rope.inv_freq.end());
  spec->mutable_rope()->set_attention_scaling(rope.attention_scaling);
  return model;
}

inline void SetTensor(const std::vector<int64_t>& shape, DType dtype, std::string data,
                      v1::Tensor* tensor) {
  tensor->set_dtype(client::ToProto(dtype));
  tensor->mutable_shape()->Assign(shape.begin(), shape.end());
  tensor->set_data(std::move(data));
}

inline void ToProto(const support::RandomCase& random, v1::SideTensors* out) {
  const pipeline::ModelSpec& model = random.geometry.model;
  const std::vector<int64_t> cells = {random.Layers(), random.KvHeads(), random.tokens};
  const pipeline::SideTensors& side = random.side;
  if (!side.q_window.empty()) {
    SetTensor({random.Layers(), model.q_heads, side.window, model.head_dim}, DType::kF32,
              BytesOf(side.q_window), out->mutable_q_window());
  }
  if (!side.attention_mass.empty()) {
    SetTensor(cells, DType::kF32, BytesOf(side.attention_mass), out->mutable_attention_mass());
  }
  if (!side.external_scores.empty()) {
    SetTensor(cells, DType::kF32, BytesOf(side.external_scores), out->mutable_external_scores());
  }
}

// One kvernd and a connection to it.
class WireSide {
 public:
  static absl::StatusOr<std::unique_ptr<WireSide>> Make(const Draw& draw) {
    std::vector<std::string> flags = {"--backend", draw.backend, "--threads",
                                      absl::StrCat(draw.threads)};
    if (!draw.instruction_set.empty()) {
      flags.insert(flags.end(), {"--instruction-set", draw.instruction_set});
    }
    std::unique_ptr<support::ServerProcess> server = support::ServerProcess::Start(flags);
    if (server == nullptr) return absl::UnavailableError("kvernd did not start");
    KVERN_ASSIGN_OR_RETURN(client::Client client, client::Client::Connect(server->Address()));
    return std::unique_ptr<WireSide>(new WireSide(std::move(server), std::move(client)));
  }

  Answer Run(const support::RandomCase& random, const Draw& draw) {
    pool_.reset();
    server_->Log();  // a pipe that nobody empties would stop the server in the end
    auto answer = Serve(random, draw);
    client_.ReleaseSequences({kSequence}).IgnoreError();
    client_.DeleteSequence(kStoredName).IgnoreError();
    return answer.ok() ? *answer : Failure(answer.status());
  }

 private:
  static constexpr char kSequence[] = "sequence";
  static constexpr char kStoredName[] = "sequences/sequence";

  WireSide(std::unique_ptr<support::ServerProcess> server, client::Client client)
      : server_(std::move(server)), client_(std::move(client)) {}

  absl::StatusOr<Answer> Serve(const support::RandomCase& random, const Draw& draw) {
    const support::Geometry& geometry = random.geometry;
    KVERN_RETURN_IF_ERROR(client_.RegisterModel(ToProto(geometry)).status());
    v1::CompressCacheRequest request;
    request.set_model("models/" + geometry.id);
    pipeline::Policy policy = random.policy;
    policy.placement = draw.placement;
    *request.mutable_policy() = ToProto(policy);
    const auto import = [&](const std::string& file) -> absl::Status {
      KVERN_ASSIGN_OR_RETURN(
          const std::string name,
          client::ImportCalibration(client_, std::as_bytes(std::span(file)), nullptr));
      request.mutable_policy()->add_calibrations(name);
      return absl::OkStatus();
    };
    if (random.uses_centres) KVERN_RETURN_IF_ERROR(import(support::CentresFile(geometry)));
    if (random.uses_moments) KVERN_RETURN_IF_ERROR(import(support::MomentsFile(geometry)));
    for (const char* field : {"kept", "positions", "scores", "k", "v", "packed"}) {
      request.mutable_response_mask()->add_paths(field);
    }
    KVERN_RETURN_IF_ERROR(AddSequence(random, draw, request.add_sequences()));
    KVERN_ASSIGN_OR_RETURN(const v1::CompressCacheResponse response, client_.Compress(request));
    const v1::SequenceResult& result = response.results(0);
    KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
    Answer answer = Figures(result);
    if (draw.source == pipeline::Source::kPaged &&
        draw.placement == pipeline::Placement::kToStore) {
      answer.fields.erase("outcome");
    }
    KVERN_RETURN_IF_ERROR(AddBytes(draw, random.Layers(), result, &answer));
    return answer;
  }

  static client::DenseCache CacheOf(const support::RandomCase& random) {
    return {.k = random.k, .v = random.v, .tokens = random.tokens};
  }

  static void SetPositions(const support::RandomCase& random, v1::Positions* positions) {
    positions->mutable_values()->Assign(random.positions.begin(), random.positions.end());
    positions->set_per_head(random.per_head_positions);
  }

  absl::Status AddSequence(const support::RandomCase& random, const Draw& draw,
                           v1::SequenceRequest* sequence) {
    sequence->set_sequence_id(kSequence);
    for (const auto& [begin, end] : random.protected_ranges) {
      v1::TokenRange* range = sequence->add_protected_();
      range->set_begin(begin);
      range->set_end(end);
    }
    ToProto(random, sequence->mutable_side());
    const bool stored = draw.source == pipeline::Source::kStored;
    if (!(stored && draw.store_holds_positions) && !random.positions.empty()) {
      SetPositions(random, sequence->mutable_positions());
      sequence->set_num_logical_tokens(random.logical_tokens);
    }
    if (stored) return Put(random, draw, sequence->mutable_stored());
    if (draw.source == pipeline::Source::kPaged) {
      return MakePool(random, draw, sequence->mutable_paged());
    }
    const std::vector<int64_t> shape = {random.Layers(), random.KvHeads(), random.tokens,
                                        random.geometry.model.head_dim};
    SetTensor(shape, random.dtype, BytesOf(random.k), sequence->mutable_inline_()->mutable_k());
    SetTensor(shape, random.dtype, BytesOf(random.v), sequence->mutable_inline_()->mutable_v());
    return absl::OkStatus();
  }

  absl::Status Put(const support::RandomCase& random, const Draw& draw, v1::StoredSource* source) {
    v1::StoredSequence header;
    header.set_name(kStoredName);
    header.set_model("models/" + random.geometry.id);
    header.set_dtype(client::ToProto(random.dtype));
    header.set_num_tokens(random.tokens);
    if (draw.store_holds_positions && !random.positions.empty()) {
      SetPositions(random, header.mutable_positions());
      header.set_num_logical_tokens(random.logical_tokens);
    }
    source->set_sequence(kStoredName);
    return client::PutSequence(client_, header, CacheOf(random), nullptr).status();
  }

  absl::Status MakePool(const support::RandomCase& random, const Draw& draw,
                        v1::PagedSource* paged) {
    client::SharedPoolOptions options;
    options.model = "models/" + random.geometry.id;
    options.dtype = random.dtype;
    options.kv_heads = static_cast<int32_t>(random.KvHeads());
    options.head_dim = random.geometry.model.head_dim;
    options.layers.resize(random.Layers());
    std::iota(options.layers.begin(), options.layers.end(), 0);
    options.block_tokens = draw.block_tokens;
    const int64_t blocks = (random.tokens + draw.block_tokens - 1) / draw.block_tokens;
    options.num_blocks = 2 * blocks + 2;
    KVERN_ASSIGN_OR_RETURN(client::SharedPool pool, client::SharedPool::Create(client_, options));
    pool_ = std::make_unique<client::SharedPool>(std::move(pool));
    KVERN_ASSIGN_OR_RETURN(std::vector<uint32_t> ids, pool_->AllocateBlocks(options.num_blocks));
    if (draw.shuffled) support::Rng(draw.seed).Shuffle(&ids);
    const std::span<const uint32_t> all(ids);
    KVERN_RETURN_IF_ERROR(pool_->Write(CacheOf(random), all.first(blocks)));
    paged->set_pool(pool_->Name());
    paged->set_num_tokens(random.tokens);
    paged->mutable_block_ids()->Assign(ids.begin(), ids.begin() + blocks);
    paged->mutable_lengths()->Assign(random.lengths.begin(), random.lengths.end());
    if (draw.placement != pipeline::Placement::kCopyTo) return absl::OkStatus();
    paged->mutable_destination_block_ids()->Assign(ids.begin() + blocks, ids.begin() + 2 * blocks);
    return absl::OkStatus();
  }

  static Answer Figures(const v1::SequenceResult& result) {
    Answer answer;
    answer.applied = result.outcome() == v1::OUTCOME_APPLIED;
    answer.Set("outcome", static_cast<int64_t>(result.outcome()) - v1::OUTCOME_APPLIED);
    answer.Set("logical", result.num_logical_tokens());
    answer.Set("physical", result.num_physical_tokens());
    answer.Set("shape class", static_cast<int64_t>(result.shape_class()) - v1::SHAPE_CLASS_S0);
    answer.Set("lengths", absl::StrJoin(result.lengths(), " "));
    answer.Set("kept counts", absl::StrJoin(result.kept_counts(), " "));
    answer.Set("kept", result.kept());
    answer.Set("positions", result.positions());
    answer.Set("scores", result.scores());
    answer.Set("bytes before", result.bytes_before());
    answer.Set("bytes after", result.bytes_after());
    const v1::Quality& quality = result.quality();
    const auto figure = [](bool present, double value) {
      return BytesOf(present ? std::optional<double>(value) : std::nullopt);
    };
    answer.Set("kept mass",
               figure(quality.has_kept_attention_mass(), quality.kept_attention_mass()));
    answer.Set("k error", figure(quality.has_k_error(), quality.k_error()));
    answer.Set("v error", figure(quality.has_v_error(), quality.v_error()));
    answer.Set("nan scores", quality.nan_scores());
    answer.Set("nonfinite", quality.nonfinite_values());
    const v1::ResolvedPolicy& resolved = result.resolved();
    answer.Set("stages", absl::StrJoin({resolved.preset(), resolved.budgeter(), resolved.scorer(),
                                        resolved.selector(), resolved.k_codec(), resolved.v_codec(),
                                        resolved.fallback()},
                                       " | "));
    answer.Set("grew", resolved.budget_grew() ? 1 : 0);
    answer.Set("warnings", absl::StrJoin(result.warnings(), "\n"));
    return answer;
  }

  absl::Status AddBytes(const Draw& draw, int64_t layers, const v1::SequenceResult& result,
                        Answer* answer) {
    using pipeline::Placement;
    if (draw.placement == Placement::kIndicesOnly) return absl::OkStatus();
    if (draw.placement == Placement::kToStore) return AddStored(result, answer);
    if (draw.placement == Placement::kReturn && result.has_packed()) {
      answer->Set("blocks", result.packed().blocks());
      answer->Set("table", result.packed().table());
      answer->Set("mean key", result.packed().mean_key());
      return absl::OkStatus();
    }
    if (draw.placement == Placement::kReturn) {
      answer->Set("k", result.k().data());
      answer->Set("v", result.v().data());
      return absl::OkStatus();
    }
    const std::vector<uint32_t> table(result.block_ids().begin(), result.block_ids().end());
    DenseRows rows{result.num_physical_tokens(),
                   {result.kept_counts().begin(), result.kept_counts().end()},
                   {}};
    const auto read = [&](bool keys) {
      rows.views.clear();
      for (int64_t layer = 0; layer < layers; ++layer) {
        rows.views.push_back(keys ? pool_->Keys(layer, table, rows.slots)
                                  : pool_->Values(layer, table, rows.slots));
      }
      return rows.Read();
    };
    answer->Set("k", read(true));
    answer->Set("v", read(false));
    return absl::OkStatus();
  }

  absl::Status AddStored(const v1::SequenceResult& result, Answer* answer) {
    KVERN_ASSIGN_OR_RETURN(const client::FetchedSequence fetched,
                           client::FetchSequence(client_, result.stored_sequence(),
                                                 client::FetchForm::kAsStored, nullptr));
    if (fetched.header.packed_table().empty()) {
      answer->Set("k", fetched.k);
      answer->Set("v", fetched.v);
      return absl::OkStatus();
    }
    answer->Set("blocks", fetched.packed);
    answer->Set("table", fetched.header.packed_table());
    answer->Set("mean key", fetched.header.mean_key());
    KVERN_ASSIGN_OR_RETURN(const client::FetchedSequence decoded,
                           client::FetchSequence(client_, result.stored_sequence(),
                                                 client::FetchForm::kDecoded, nullptr));
    answer->Set("decoded k", decoded.k);
    answer->Set("decoded v", decoded.v);
    return absl::OkStatus();
  }

  std::unique_ptr<support::ServerProcess> server_;
  client::Client client_;
  std::unique_ptr<client::SharedPool> pool_;  // of the case that runs
};

}  // namespace kvern::equality

#endif  // KVERN_TESTS_INTEGRATION_EQUALITY_WIRE_SIDE_H_
