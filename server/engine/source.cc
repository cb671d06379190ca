// Three kinds of memory become one kind of view.
#include "server/engine/source.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/memory/block_table.h"

namespace kvern::engine {
namespace {

absl::Status Bad(absl::string_view field, const std::string& what) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", what)), field);
}

// Errors: InvalidArgument unless the indices ascend inside the model.
absl::Status CheckLayers(const std::vector<int32_t>& layers, const pipeline::ModelSpec& model) {
  int32_t last = -1;
  for (const int32_t layer : layers) {
    if (layer <= last || layer >= model.num_layers) {
      return Bad("layer_indices", absl::StrCat("got ", layer, " after ", last,
                                               ", want ascending ones below ", model.num_layers));
    }
    last = layer;
  }
  return absl::OkStatus();
}

ScratchVector<int32_t> AllLayers(const pipeline::ModelSpec& model) {
  ScratchVector<int32_t> layers(model.num_layers);
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

absl::Status CheckTokens(absl::string_view field, int64_t tokens, const Limits& limits) {
  if (tokens >= 0 && tokens <= limits.tokens_per_sequence) return absl::OkStatus();
  return Bad(field, absl::StrCat("got ", tokens, ", want 0..", limits.tokens_per_sequence));
}

// Lengths as sent, [layers] or [layers * kv_heads], become [layers * kv_heads].
absl::StatusOr<ScratchVector<int32_t>> ExpandLengths(const std::vector<int32_t>& sent,
                                                     const SlotShape& shape) {
  if (sent.empty()) return ScratchVector<int32_t>();
  const int64_t size = static_cast<int64_t>(sent.size());
  if (size != shape.layers && size != shape.Rows()) {
    return Bad("paged.lengths",
               absl::StrCat("got ", size, " values, want ", shape.layers, " or ", shape.Rows()));
  }
  for (const int32_t length : sent) {
    if (length < 0 || length > shape.tokens) {
      return Bad("paged.lengths", absl::StrCat("got ", length, ", want 0..", shape.tokens));
    }
  }
  if (size == shape.Rows()) return ScratchVector<int32_t>(sent);
  ScratchVector<int32_t> lengths;
  lengths.reserve(shape.Rows());
  for (const int32_t length : sent) lengths.insert(lengths.end(), shape.kv_heads, length);
  return lengths;
}

void PointAtLengths(BoundSource* source) {
  if (source->lengths.empty()) return;
  const int64_t kv_heads = source->input.KvHeads();
  for (int64_t layer = 0; layer < source->input.Layers(); ++layer) {
    const int32_t* lengths = source->lengths.data() + layer * kv_heads;
    source->input.keys[layer].lengths = lengths;
    source->input.values[layer].lengths = lengths;
  }
}

absl::Status BindPaged(const PagedSource& paged, const SourceTables& tables,
                       const RegisteredModel& model, BoundSource* source) {
  const Limits& limits = tables.limits;
  KVERN_ASSIGN_OR_RETURN(source->pool, tables.pools.Find(paged.pool));
  const memory::PoolSpec& pool = source->pool->spec;
  if (pool.model != model.id || pool.kv_heads != model.spec.kv_heads ||
      pool.head_dim != model.spec.head_dim) {
    return Bad("paged.pool", "got a pool of another model, want one of the request's");
  }
  KVERN_RETURN_IF_ERROR(CheckTokens("paged.num_tokens", paged.num_tokens, limits));
  const memory::BlockTableSpec table = {pool.num_blocks, pool.block_tokens, paged.num_tokens,
                                        limits.blocks_per_table};
  KVERN_RETURN_IF_ERROR(memory::ValidateBlockTable(table, paged.block_ids, "paged.block_ids"));
  KVERN_RETURN_IF_ERROR(memory::ValidateDestination(
      table, paged.destination_block_ids, paged.block_ids, "paged.destination_block_ids"));
  source->kind = pipeline::Source::kPaged;
  source->paged = &paged;
  source->dtype = pool.dtype;
  source->engine = pool.engine;
  for (size_t slot = 0; slot < pool.layers.size(); ++slot) {
    source->input.layer_indices.push_back(pool.layers[slot].layer);
    const auto layer = static_cast<int64_t>(slot);
    source->input.keys.push_back(source->pool->Keys(layer, paged.block_ids, paged.num_tokens));
    source->input.values.push_back(source->pool->Values(layer, paged.block_ids, paged.num_tokens));
  }
  KVERN_RETURN_IF_ERROR(CheckLayers(source->input.layer_indices, model.spec));
  SlotShape shape = source->Shape();
  shape.tokens = paged.num_tokens;
  KVERN_ASSIGN_OR_RETURN(source->lengths, ExpandLengths(paged.lengths, shape));
  return absl::OkStatus();
}

absl::Status BindStored(const StoredSource& stored, const SourceTables& tables,
                        const RegisteredModel& model, BoundSource* source) {
  KVERN_ASSIGN_OR_RETURN(source->stored, tables.store.Peek(stored.sequence));
  const memory::StoredInfo& info = source->stored->Info();
  if (info.model != model.id || info.kv_heads != model.spec.kv_heads ||
      info.head_dim != model.spec.head_dim) {
    return Bad("stored.sequence", "got a sequence of another model, want one of the request's");
  }
  if (source->stored->Packed()) {
    return WithReason(absl::FailedPreconditionError(
                          "stored.sequence: got a packed sequence, want a dense one (fetch it "
                          "decoded and store that)"),
                      "SEQUENCE_PACKED");
  }
  source->kind = pipeline::Source::kStored;
  source->dtype = info.dtype;
  source->lengths = info.lengths;
  source->input.layer_indices =
      info.layer_indices.empty() ? AllLayers(model.spec) : info.layer_indices;
  KVERN_RETURN_IF_ERROR(CheckLayers(source->input.layer_indices, model.spec));
  const auto layers = static_cast<int64_t>(source->input.layer_indices.size());
  for (int64_t layer = 0; layer < layers; ++layer) {
    source->input.keys.push_back(source->stored->Keys(layer));
    source->input.values.push_back(source->stored->Values(layer));
  }
  return absl::OkStatus();
}

absl::Status BindInline(const InlineSource& sent, const RegisteredModel& model,
                        const Limits& limits, BoundSource* source) {
  KVERN_RETURN_IF_ERROR(CheckTokens("inline.k", sent.tokens, limits));
  source->kind = pipeline::Source::kInline;
  source->dtype = sent.dtype;
  ScratchVector<int32_t>& layers = source->input.layer_indices;
  layers = sent.layer_indices.empty() ? AllLayers(model.spec) : sent.layer_indices;
  KVERN_RETURN_IF_ERROR(CheckLayers(layers, model.spec));
  if (sent.layers != static_cast<int64_t>(layers.size()) || sent.kv_heads != model.spec.kv_heads ||
      sent.head_dim != model.spec.head_dim) {
    return Bad("inline.k",
               absl::StrCat("got shape [", sent.layers, ", ", sent.kv_heads, ", ", sent.tokens,
                            ", ", sent.head_dim, "], want [", layers.size(), ", ",
                            model.spec.kv_heads, ", tokens, ", model.spec.head_dim, "]"));
  }
  // The edge made sure that k and v hold this many bytes each.
  const int64_t layer_bytes = sent.kv_heads * sent.tokens * sent.head_dim * SizeOf(sent.dtype);
  for (int64_t layer = 0; layer < sent.layers; ++layer) {
    const auto view = [&](const std::byte* base) {
      std::byte* at =
          base == nullptr ? nullptr : const_cast<std::byte*>(base) + layer * layer_bytes;
      return DenseKvRef(sent.dtype, at, sent.kv_heads, sent.tokens, sent.head_dim);
    };
    source->input.keys.push_back(view(sent.k));
    source->input.values.push_back(view(sent.v));
  }
  return absl::OkStatus();
}

absl::Status CheckRanges(const SequenceJob& job, int64_t tokens) {
  for (const auto& [begin, end] : job.protected_ranges) {
    if (begin < 0 || begin > end || end > tokens) {
      return Bad("protected", absl::StrCat("got [", begin, ", ", end, "), want a range inside [0, ",
                                           tokens, ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPrefix(const SequenceJob& job, const BoundSource& source) {
  const int64_t prefix = job.readonly_prefix_tokens;
  if (prefix == 0) return absl::OkStatus();
  if (source.kind != pipeline::Source::kPaged) {
    return Bad("readonly_prefix_tokens", absl::StrCat("got ", prefix,
                                                      ", want 0 but for paged "
                                                      "sources"));
  }
  int64_t shortest = source.input.Tokens();
  for (const int32_t length : source.lengths) shortest = std::min<int64_t>(shortest, length);
  const int64_t block_tokens = source.pool->spec.block_tokens;
  if (prefix >= 0 && prefix <= shortest && prefix % block_tokens == 0) return absl::OkStatus();
  return Bad("readonly_prefix_tokens", absl::StrCat("got ", prefix, ", want a multiple of ",
                                                    block_tokens, " in 0..", shortest));
}

absl::Status CheckSide(const SequenceJob& job, const BoundSource& source) {
  if (job.chosen != nullptr) return absl::OkStatus();  // no stage asks: they were for the plan
  const pipeline::SideTensors& side = job.side;
  const SlotShape shape = source.Shape();
  if (job.side_layers != 0 && job.side_layers != shape.layers) {
    return Bad("side", absl::StrCat("got ", job.side_layers, " layers, want ", shape.layers));
  }
  const int64_t cells = shape.Rows() * shape.tokens;
  const auto check = [&](const char* field, const std::vector<float>& values) {
    if (values.empty() || static_cast<int64_t>(values.size()) == cells) return absl::OkStatus();
    return Bad(field, absl::StrCat("got ", values.size(),
                                   " values, want [layers, kv_heads, "
                                   "tokens] = ",
                                   cells));
  };
  KVERN_RETURN_IF_ERROR(check("side.attention_mass", side.attention_mass));
  KVERN_RETURN_IF_ERROR(check("side.external_scores", side.external_scores));
  if (side.q_window.empty()) return absl::OkStatus();
  if (side.window < 1 || side.window > shape.tokens) {
    return Bad("side.q_window",
               absl::StrCat("got a window of ", side.window, ", want 1..", shape.tokens));
  }
  const pipeline::ModelSpec& model = *source.input.model;
  const int64_t want = shape.layers * model.q_heads * side.window * model.head_dim;
  if (static_cast<int64_t>(side.q_window.size()) == want) return absl::OkStatus();
  return Bad("side.q_window", absl::StrCat("got ", side.q_window.size(),
                                           " values, want [layers, "
                                           "q_heads, window, head_dim] = ",
                                           want));
}

}  // namespace

SlotShape BoundSource::Shape() const {
  return {input.Layers(), input.KvHeads(), input.Tokens(), &lengths};
}

int64_t BoundSource::TokenBytes() const { return 2 * input.model->head_dim * SizeOf(dtype); }

int64_t BoundSource::TotalTokens() const {
  if (lengths.empty()) return input.Layers() * input.KvHeads() * input.Tokens();
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

absl::StatusOr<std::unique_ptr<BoundSource>> BindSource(const SequenceJob& job,
                                                        const SourceTables& tables,
                                                        const RegisteredModel& model) {
  auto source = std::make_unique<BoundSource>();
  source->input.model = &model.spec;
  source->input.calibrations = &source->calibrations;
  source->input.side = &job.side;
  if (const auto* paged = std::get_if<PagedSource>(&job.source)) {
    KVERN_RETURN_IF_ERROR(BindPaged(*paged, tables, model, source.get()));
  } else if (const auto* stored = std::get_if<StoredSource>(&job.source)) {
    KVERN_RETURN_IF_ERROR(BindStored(*stored, tables, model, source.get()));
  } else {
    KVERN_RETURN_IF_ERROR(
        BindInline(std::get<InlineSource>(job.source), model, tables.limits, source.get()));
  }
  PointAtLengths(source.get());
  return source;
}

absl::Status BindDetails(const SequenceJob& job, BoundSource* source) {
  KVERN_RETURN_IF_ERROR(CheckRanges(job, source->input.Tokens()));
  KVERN_RETURN_IF_ERROR(CheckPrefix(job, *source));
  KVERN_RETURN_IF_ERROR(CheckSide(job, *source));
  source->input.protected_ranges = job.protected_ranges;
  source->input.readonly_prefix_tokens = job.readonly_prefix_tokens;
  return absl::OkStatus();
}

absl::Status Stage(Backend& backend, BoundSource* source) {
  if (source->staged) return absl::OkStatus();
  pipeline::SequenceInput& input = source->input;
  BoundSource::Staged staged;
  KVERN_ASSIGN_OR_RETURN(staged.keys, backend.Stage(input.keys));
  KVERN_ASSIGN_OR_RETURN(staged.values, backend.Stage(input.values));
  staged.source_keys.swap(input.keys);
  staged.source_values.swap(input.values);
  input.keys = staged.keys.rows;
  input.values = staged.values.rows;
  PointAtLengths(source);
  source->staged = std::move(staged);
  return absl::OkStatus();
}

void Unstage(BoundSource* source) {
  if (!source->staged) return;
  source->input.keys.swap(source->staged->source_keys);
  source->input.values.swap(source->staged->source_values);
  source->staged.reset();
}

pipeline::Availability AvailabilityOf(const BoundSource& source) {
  pipeline::Availability available;
  available.source = source.kind;
  available.read_only_pool = source.pool != nullptr && source.pool->spec.read_only;
  const auto add = [&](pipeline::Inputs input, bool present) {
    if (present) available.inputs |= input;
  };
  const pipeline::Calibrations& calibrations = source.calibrations;
  add(pipeline::kNeedsCentres, calibrations.centres != nullptr);
  add(pipeline::kNeedsMoments, calibrations.moments != nullptr);
  add(pipeline::kNeedsSensitivity,
      calibrations.centres != nullptr && !calibrations.centres->layer_sensitivity.empty());
  // Of an empty sequence there is nothing to send, and nothing to score.
  const bool empty = source.input.Tokens() == 0;
  const pipeline::SideTensors& side = *source.input.side;
  add(pipeline::kNeedsQueryWindow, empty || !side.q_window.empty());
  add(pipeline::kNeedsAttentionMass, empty || !side.attention_mass.empty());
  add(pipeline::kNeedsExternalScores, empty || !side.external_scores.empty());
  add(pipeline::kNeedsRope, source.input.model->rope.Bands() > 0);
  add(pipeline::kNeedsValues, true);
  return available;
}

}  // namespace kvern::engine
