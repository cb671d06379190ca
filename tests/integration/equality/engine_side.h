// Cases served by engines in this process: one for each backend and thread count.
#ifndef KVERN_TESTS_INTEGRATION_EQUALITY_ENGINE_SIDE_H_
#define KVERN_TESTS_INTEGRATION_EQUALITY_ENGINE_SIDE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "server/engine/engine.h"
#include "tests/integration/equality/answer.h"

namespace kvern::equality {

// One engine, memory for one pool at a time, and the models it was told.
class EngineSide {
 public:
  static absl::StatusOr<std::unique_ptr<EngineSide>> Make(const std::string& backend, int threads) {
    std::unique_ptr<EngineSide> side(new EngineSide);
    engine::EngineOptions options;
    options.limits.store_bytes = int64_t{64} << 20;
    KVERN_ASSIGN_OR_RETURN(options.backend, MakeBackend({.name = backend,
                                                         .threads = threads,
                                                         .scratch_bytes = int64_t{256} << 20,
                                                         .hang_seconds = 300}));
    KVERN_ASSIGN_OR_RETURN(side->engine_, engine::Engine::Create(std::move(options)));
    const int fd = memfd_create("pool", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, kPoolBytes) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
      return absl::ResourceExhaustedError("memfd");
    }
    KVERN_ASSIGN_OR_RETURN(side->region_, memory::Region::Map(fd, getuid()));
    side->attachment_ = side->engine_->Attachments().Attach(side->region_, /*connection=*/1);
    return side;
  }

  // Serves the case; what was stored, registered and remembered for it is gone afterwards.
  Answer Run(const support::RandomCase& random, const Draw& draw) {
    // The choice is process-wide and made anew by every backend; one call runs at a time.
    if (draw.backend == "cpu") {
      const auto chosen =
          MakeBackend({.name = "cpu", .instruction_set = draw.instruction_set, .threads = 1});
      if (!chosen.ok()) return Failure(chosen.status());
    }
    auto answer = Serve(random, draw);
    engine_->Release({kSequence});
    engine_->Store().Delete(kSequence);
    engine_->Pools().Unregister(kPool);
    return answer.ok() ? *answer : Failure(answer.status());
  }

 private:
  static constexpr int64_t kPoolBytes = int64_t{32} << 20;
  static constexpr char kSequence[] = "sequence";
  static constexpr char kPool[] = "pool";

  struct Blocks {
    std::vector<uint32_t> source, destination;
  };

  absl::StatusOr<Answer> Serve(const support::RandomCase& random, const Draw& draw) {
    KVERN_RETURN_IF_ERROR(Introduce(random));
    engine::CompressJob job;
    job.peer = "uid:1000";
    job.model = random.geometry.id;
    job.policy = random.policy;
    job.policy.placement = draw.placement;
    if (random.uses_centres) job.policy.calibrations.push_back(centres_.at(random.geometry.id));
    if (random.uses_moments) job.policy.calibrations.push_back(moments_.at(random.geometry.id));
    job.fields = {false, true, true, true, true, true, true};
    job.cancelled = std::make_shared<std::atomic<bool>>(false);
    KVERN_ASSIGN_OR_RETURN(engine::SequenceJob sequence, Sequence(random, draw));
    job.sequences.push_back(std::move(sequence));
    KVERN_ASSIGN_OR_RETURN(engine::CompressResult call, engine_->CompressAndWait(std::move(job)));
    engine::SequenceResult& result = call.results.at(0);
    KVERN_RETURN_IF_ERROR(result.status);
    Answer answer = Figures(result);
    const bool renewed = answer.applied && draw.placement != pipeline::Placement::kIndicesOnly;
    if (result.epoch != (renewed ? 1u : 0u)) return absl::InternalError("epoch");
    // A paged sequence that stays whole is copied into the store nevertheless.
    if (draw.source == pipeline::Source::kPaged &&
        draw.placement == pipeline::Placement::kToStore) {
      answer.fields.erase("outcome");
    }
    KVERN_RETURN_IF_ERROR(AddBytes(draw, result, &answer));
    return answer;
  }

  absl::Status Introduce(const support::RandomCase& random) {
    const support::Geometry& geometry = random.geometry;
    if (known_.insert(geometry.id).second) {
      engine::RegisteredModel model;
      model.id = geometry.id;
      model.spec = geometry.model;
      KVERN_RETURN_IF_ERROR(engine_->Models().Register(model).status());
    }
    const auto import = [&](std::string file, std::map<std::string, std::string>* names) {
      bool existed = false;
      auto artifact = engine_->Models().Import(std::move(file), &existed);
      if (artifact.ok()) (*names)[geometry.id] = artifact->sha256;
      return artifact.status();
    };
    if (random.uses_centres && !centres_.contains(geometry.id)) {
      KVERN_RETURN_IF_ERROR(import(support::CentresFile(geometry), &centres_));
    }
    if (random.uses_moments && !moments_.contains(geometry.id)) {
      KVERN_RETURN_IF_ERROR(import(support::MomentsFile(geometry), &moments_));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<engine::SequenceJob> Sequence(const support::RandomCase& random,
                                               const Draw& draw) {
    engine::SequenceJob sequence;
    sequence.sequence_id = kSequence;
    sequence.protected_ranges = random.protected_ranges;
    sequence.side = random.side;
    const bool stored = draw.source == pipeline::Source::kStored;
    if (!(stored && draw.store_holds_positions)) {
      sequence.positions = random.positions;
      sequence.per_head_positions = random.per_head_positions;
      sequence.logical_tokens = random.logical_tokens;
    }
    if (stored) {
      KVERN_RETURN_IF_ERROR(Put(random, draw));
      sequence.source = engine::StoredSource{kSequence};
    } else if (draw.source == pipeline::Source::kPaged) {
      KVERN_ASSIGN_OR_RETURN(sequence.source, MakePool(random, draw));
    } else {
      engine::InlineSource sent;
      sent.dtype = random.dtype;
      sent.layers = random.Layers();
      sent.kv_heads = random.KvHeads();
      sent.tokens = random.tokens;
      sent.head_dim = random.geometry.model.head_dim;
      sent.k = random.k.data();
      sent.v = random.v.data();
      sequence.source = sent;
    }
    return sequence;
  }

  absl::Status Put(const support::RandomCase& random, const Draw& draw) {
    memory::StoredInfo info;
    info.id = kSequence;
    info.model = random.geometry.id;
    info.layer_indices.resize(random.Layers());
    std::iota(info.layer_indices.begin(), info.layer_indices.end(), 0);
    info.dtype = random.dtype;
    info.kv_heads = static_cast<int32_t>(random.KvHeads());
    info.head_dim = random.geometry.model.head_dim;
    info.num_tokens = info.logical_tokens = random.tokens;
    info.lengths = random.lengths;
    if (draw.store_holds_positions && !random.positions.empty()) {
      info.positions = random.positions;
      info.per_head_positions = random.per_head_positions;
      info.logical_tokens = random.logical_tokens;
    }
    KVERN_ASSIGN_OR_RETURN(auto stored, engine_->Store().AllocateDense(std::move(info)));
    WriteStored(random, random.k,
                Views(random.Layers(), [&](int64_t layer) { return stored->Keys(layer); }),
                *stored);
    WriteStored(random, random.v,
                Views(random.Layers(), [&](int64_t layer) { return stored->Values(layer); }),
                *stored);
    return engine_->Store().Publish(std::move(stored), memory::Store::Commit::kNew, 0);
  }

  template <class ViewOf>
  static std::vector<KvRef> Views(int64_t layers, ViewOf&& view_of) {
    std::vector<KvRef> views;
    for (int64_t layer = 0; layer < layers; ++layer) views.push_back(view_of(layer));
    return views;
  }

  static KvStrides StridesOf(const support::RandomCase& random, const Draw& draw) {
    const int64_t size = SizeOf(random.dtype);
    const int64_t tokens = draw.block_tokens;
    KvStrides strides;
    strides.block = random.KvHeads() * tokens * random.RowBytes();
    if (draw.layout == support::TileLayout::kTokenMajor) {
      strides.head = random.RowBytes();
      strides.token = random.KvHeads() * random.RowBytes();
      strides.dim = size;
      return strides;
    }
    const bool columns = draw.layout == support::TileLayout::kColumns;
    strides.head = tokens * random.RowBytes();
    strides.token = columns ? size : random.RowBytes();
    strides.dim = columns ? tokens * size : size;
    return strides;
  }

  absl::StatusOr<engine::PagedSource> MakePool(const support::RandomCase& random,
                                               const Draw& draw) {
    const int64_t blocks = (random.tokens + draw.block_tokens - 1) / draw.block_tokens;
    memory::PoolSpec spec;
    spec.id = kPool;
    spec.model = random.geometry.id;
    spec.dtype = random.dtype;
    spec.kv_heads = static_cast<int32_t>(random.KvHeads());
    spec.head_dim = random.geometry.model.head_dim;
    spec.block_tokens = draw.block_tokens;
    spec.num_blocks = 2 * blocks + 2;
    spec.max_shape_class = 4;
    spec.regions = {attachment_};
    const KvStrides strides = StridesOf(random, draw);
    const int64_t plane = spec.num_blocks * strides.block;
    for (int64_t layer = 0; layer < random.Layers(); ++layer) {
      spec.layers.push_back({static_cast<int32_t>(layer),
                             {0, 2 * layer * plane, strides},
                             {0, (2 * layer + 1) * plane, strides}});
    }
    KVERN_ASSIGN_OR_RETURN(const auto pool, engine_->Pools().Register(spec));
    // NaN wherever no token lies: reading it shows.
    std::memset(region_->Data(), 0xFF, 2 * random.Layers() * plane);
    std::vector<uint32_t> ids(spec.num_blocks);
    std::iota(ids.begin(), ids.end(), 0u);
    if (draw.shuffled) support::Rng(draw.seed).Shuffle(&ids);
    engine::PagedSource paged;
    paged.pool = kPool;
    paged.block_ids.assign(ids.begin(), ids.begin() + blocks);
    paged.num_tokens = random.tokens;
    paged.lengths = random.lengths;
    if (draw.placement == pipeline::Placement::kCopyTo) {
      paged.destination_block_ids.assign(ids.begin() + blocks, ids.begin() + 2 * blocks);
    }
    WriteRows(random, random.k, Views(random.Layers(), [&](int64_t layer) {
                return pool->Keys(layer, paged.block_ids, random.tokens);
              }));
    WriteRows(random, random.v, Views(random.Layers(), [&](int64_t layer) {
                return pool->Values(layer, paged.block_ids, random.tokens);
              }));
    return paged;
  }

  static Answer Figures(const engine::SequenceResult& result) {
    Answer answer;
    answer.applied = result.outcome == engine::Outcome::kApplied;
    answer.Set("outcome", static_cast<int64_t>(result.outcome));
    answer.Set("logical", result.logical_tokens);
    answer.Set("physical", result.physical_tokens);
    answer.Set("shape class", static_cast<int64_t>(result.shape_class));
    answer.Set("lengths", absl::StrJoin(result.lengths, " "));
    answer.Set("kept counts", absl::StrJoin(result.kept_counts, " "));
    answer.Set("kept", BytesOf(result.kept));
    answer.Set("positions", BytesOf(result.positions));
    answer.Set("scores", BytesOf(result.scores));
    answer.Set("bytes before", result.bytes_before);
    answer.Set("bytes after", result.bytes_after);
    answer.Set("kept mass", BytesOf(result.kept_attention_mass));
    answer.Set("k error", BytesOf(result.k_error));
    answer.Set("v error", BytesOf(result.v_error));
    answer.Set("nan scores", result.nan_scores);
    answer.Set("nonfinite", result.nonfinite_values);
    answer.Set("stages",
               absl::StrJoin({result.preset, result.budgeter, result.scorer, result.selector,
                              result.k_codec, result.v_codec, result.fallback},
                             " | "));
    answer.Set("grew", result.budget_grew ? 1 : 0);
    answer.Set("warnings", absl::StrJoin(result.warnings, "\n"));
    return answer;
  }

  absl::Status AddBytes(const Draw& draw, const engine::SequenceResult& result, Answer* answer) {
    using pipeline::Placement;
    if (draw.placement == Placement::kIndicesOnly) return absl::OkStatus();
    if (draw.placement == Placement::kToStore) return AddStored(result, answer);
    if (draw.placement == Placement::kReturn && result.packed.has_value()) {
      answer->Set("blocks", BytesOf(std::span<const std::byte>(result.packed->blocks)));
      answer->Set("table", BytesOf(result.packed->table));
      answer->Set("mean key", BytesOf(result.packed->mean_key));
      return absl::OkStatus();
    }
    if (draw.placement == Placement::kReturn) {
      answer->Set("k", BytesOf(std::span<const std::byte>(result.k)));
      answer->Set("v", BytesOf(std::span<const std::byte>(result.v)));
      return absl::OkStatus();
    }
    KVERN_ASSIGN_OR_RETURN(const auto pool, engine_->Pools().Find(kPool));
    DenseRows rows{result.max_kept, result.kept_counts, {}};
    rows.views = Views(result.layers, [&](int64_t layer) {
      return pool->Keys(layer, result.block_ids, result.max_kept);
    });
    answer->Set("k", rows.Read());
    rows.views = Views(result.layers, [&](int64_t layer) {
      return pool->Values(layer, result.block_ids, result.max_kept);
    });
    answer->Set("v", rows.Read());
    return absl::OkStatus();
  }

  absl::Status AddStored(const engine::SequenceResult& result, Answer* answer) {
    KVERN_ASSIGN_OR_RETURN(const auto stored, engine_->Store().Find(result.stored_sequence));
    if (stored->Packed()) {
      std::vector<std::byte> blocks(stored->Blocks().size());
      KVERN_RETURN_IF_ERROR(stored->CopyOut(stored->Blocks().data(), blocks));
      answer->Set("blocks", BytesOf(std::span<const std::byte>(blocks)));
      answer->Set("table", BytesOf(stored->Info().table));
      answer->Set("mean key", BytesOf(stored->Info().mean_key));
      std::vector<std::byte> k, v;
      KVERN_RETURN_IF_ERROR(engine_->DecodeStored(*stored, absl::InfiniteFuture(), &k, &v));
      answer->Set("decoded k", BytesOf(std::span<const std::byte>(k)));
      answer->Set("decoded v", BytesOf(std::span<const std::byte>(v)));
      return absl::OkStatus();
    }
    DenseRows rows{result.max_kept, result.kept_counts, {}, stored.get()};
    rows.views = Views(result.layers, [&](int64_t layer) { return stored->Keys(layer); });
    answer->Set("k", rows.Read());
    rows.views = Views(result.layers, [&](int64_t layer) { return stored->Values(layer); });
    answer->Set("v", rows.Read());
    return absl::OkStatus();
  }

  std::unique_ptr<engine::Engine> engine_;
  std::shared_ptr<memory::Region> region_;
  memory::AttachmentId attachment_{};
  std::set<std::string> known_;
  std::map<std::string, std::string> centres_, moments_;  // artifact by geometry
};

}  // namespace kvern::equality

#endif  // KVERN_TESTS_INTEGRATION_EQUALITY_ENGINE_SIDE_H_
