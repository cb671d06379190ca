// All refusals come before the first byte moves; after it there is publishing, which cannot fail.
#include "server/engine/sequence_run.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/engine/chosen_plan.h"
#include "server/engine/report.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;
using pipeline::PositionMode;
using pipeline::ShapeClass;

int64_t MicrosSince(absl::Time start) { return absl::ToInt64Microseconds(absl::Now() - start); }

absl::Status Bad(const std::string& field, const std::string& what) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", what)), field);
}

bool WritesPool(Placement placement) {
  return placement == Placement::kCopyTo || placement == Placement::kCompact;
}

// Lowest class of any sets with these counts.
ShapeClass ClassOfCounts(const std::vector<int32_t>& counts, int64_t kv_heads) {
  ShapeClass lowest = ShapeClass::kS0;
  for (size_t row = 1; row < counts.size(); ++row) {
    if (counts[row] == counts[row - 1]) continue;
    if (row % kv_heads != 0) return ShapeClass::kS4;
    lowest = ShapeClass::kS3;
  }
  return lowest;
}

// Only a path inside the sequence is known below; the caller knows the request's.
absl::Status InRequest(const absl::Status& status, const SequenceJob& job, size_t index) {
  const std::string field = FieldOf(status);
  if (field.empty() || absl::StartsWith(field, "sequences[")) return status;
  if (absl::StartsWith(field, "policy") && !job.policy.has_value()) return status;
  return WithField(status, absl::StrCat("sequences[", index, "].", field));
}

// Of a sequence that failed before its own was resolved.
const pipeline::ResolvedPolicy& NoPolicy() {
  static const auto* const none = new pipeline::ResolvedPolicy;
  return *none;
}

}  // namespace

SequenceRun::SequenceRun(CallRun* call, size_t index)
    : call_(*call), job_(call->job.sequences[index]), index_(index), policy_(&NoPolicy()) {
  result_.sequence_id = job_.sequence_id;
  result_.epoch = job_.epoch;
  result_.logical_tokens = result_.dropped_tokens = job_.logical_tokens;
  result_.queue_us = call->queue_us;
  result_.preset = (job_.policy.has_value() ? *job_.policy : call->job.policy).preset;
}

void SequenceRun::Do(Phase phase) {
  if (!Ok()) return;
  try {
    status_ = (this->*phase)();
  } catch (const std::bad_alloc&) {
    FailForMemory();
  }
}

void SequenceRun::FailForMemory() {
  const bool moved_in_place = policy_->placement == Placement::kCompact && result_.moved_bytes > 0;
  Fail(moved_in_place
           ? Poisoned("RESOURCE_EXHAUSTED")
           : absl::ResourceExhaustedError("sequence: got no memory for its plan, want more of it"));
}

absl::Status SequenceRun::Begin() {
  KVERN_RETURN_IF_ERROR(job_.edge_status);
  KVERN_RETURN_IF_ERROR(call_.stop.Check());
  KVERN_RETURN_IF_ERROR(Bind());
  return Decide();
}

SlotOwner SequenceRun::Owner() const {
  const auto chars = [](const std::string& id) {
    return ScratchVector<char>(id.begin(), id.end());
  };
  return {chars(call_.model.id), chars(source_->paged->pool), source_->Shape().Rows()};
}

absl::Status SequenceRun::CheckEpoch() {
  if (job_.epoch == std::numeric_limits<uint64_t>::max()) {
    return Bad("epoch", "got 2^64 - 1, want a lower one, so that it can grow");
  }
  if (IsChosen()) {
    remembered_ = job_.chosen->slots;
    return CheckUnchanged(job_, *source_, call_.workplace.remembered);
  }
  if (source_->paged != nullptr) {
    KVERN_ASSIGN_OR_RETURN(remembered_,
                           call_.workplace.remembered.Look(job_.sequence_id, job_.epoch));
    if (remembered_ != nullptr && remembered_->owner != Owner()) remembered_ = nullptr;
    return absl::OkStatus();
  }
  const bool stale = source_->stored != nullptr && job_.epoch < source_->stored->Info().epoch;
  if (!stale) return absl::OkStatus();
  return WithReason(absl::AbortedError(absl::StrCat("epoch: got ", job_.epoch, ", want ",
                                                    source_->stored->Info().epoch, " or higher")),
                    "EPOCH_MISMATCH");
}

absl::Status SequenceRun::BindPositions() {
  const SlotShape shape = source_->Shape();
  SlotPositions positions = Consecutive(shape);
  if (!job_.positions.empty()) {
    positions = {job_.positions, job_.per_head_positions, shape.tokens};
  } else if (remembered_ != nullptr) {
    positions = Extend(*remembered_, shape);
    guessed_positions_ = IsChosen() && job_.chosen->guessed_positions;
  } else if (source_->stored != nullptr && !source_->stored->Info().positions.empty()) {
    const memory::StoredInfo& info = source_->stored->Info();
    positions = {info.positions, info.per_head_positions, info.logical_tokens};
  } else {
    guessed_positions_ = job_.logical_tokens > shape.tokens;
  }
  if (job_.logical_tokens != 0) positions.logical_tokens = job_.logical_tokens;
  if (positions.logical_tokens < shape.tokens ||
      positions.logical_tokens > std::numeric_limits<int32_t>::max()) {
    return Bad("num_logical_tokens", absl::StrCat("got ", positions.logical_tokens, ", want ",
                                                  shape.tokens, "..2^31 - 1"));
  }
  KVERN_RETURN_IF_ERROR(CheckPositions(positions, shape, "positions"));
  if (guessed_positions_) {
    result_.warnings.push_back(absl::StrCat("positions: none were sent or remembered although ",
                                            positions.logical_tokens - shape.tokens,
                                            " tokens were dropped; took 0, 1, 2, ..."));
  }
  source_->input.positions = std::move(positions.values);
  source_->input.per_head_positions = positions.per_head;
  source_->input.logical_tokens = positions.logical_tokens;
  return absl::OkStatus();
}

absl::Status SequenceRun::Bind() {
  const Workplace& workplace = call_.workplace;
  KVERN_ASSIGN_OR_RETURN(
      source_, BindSource(job_, {workplace.pools, workplace.store, workplace.limits}, call_.model));
  KVERN_RETURN_IF_ERROR(CheckEpoch());
  KVERN_RETURN_IF_ERROR(BindPositions());
  KVERN_RETURN_IF_ERROR(BindDetails(job_, source_.get()));
  DescribeSource(*source_, &result_);
  return absl::OkStatus();
}

bool SequenceRun::IsIdentity() const {
  const pipeline::SequenceInput& input = source_->input;
  if (policy_->codecs.Packs() || !plan_.counts.EverythingStays(input)) return false;
  // Bytes that are to lie elsewhere are not where they should be yet.
  if (policy_->placement == Placement::kToStore && source_->stored == nullptr) return false;
  if (policy_->positions == PositionMode::kKeepLogical) return true;
  if (input.logical_tokens != input.Tokens()) return false;
  const int64_t rows = input.per_head_positions ? source_->Shape().Rows() : 1;
  const int64_t tokens = input.Tokens();
  for (int64_t at = 0; at < rows * tokens; ++at) {
    if (input.positions[at] >= 0 && input.positions[at] != at % tokens) return false;
  }
  return true;
}

absl::Status SequenceRun::CheckShape(ShapeClass shape) const {
  const bool stays_in_pool =
      WritesPool(policy_->placement) || policy_->placement == Placement::kIndicesOnly;
  if (source_->pool == nullptr || !stays_in_pool) return absl::OkStatus();
  if (static_cast<int>(shape) <= source_->pool->spec.max_shape_class) return absl::OkStatus();
  return WithReason(absl::FailedPreconditionError(absl::StrCat(
                        "shape class: got S", static_cast<int>(shape),
                        ", want at most the pool's S", source_->pool->spec.max_shape_class)),
                    "SHAPE_CLASS");
}

absl::Status SequenceRun::CheckResponse() {
  const int64_t bytes = ResponseBytes(*source_, *policy_, plan_.counts.counts, fields_);
  if (bytes > call_.response_bytes_left) {
    return WithReason(absl::ResourceExhaustedError(
                          absl::StrCat("response: got ", bytes, " bytes, want at most ",
                                       call_.response_bytes_left, " (--max-response-bytes)")),
                      "RESPONSE_TOO_LARGE");
  }
  call_.response_bytes_left -= bytes;
  return absl::OkStatus();
}

absl::Status SequenceRun::Decide() {
  const pipeline::Policy& asked = job_.policy.has_value() ? *job_.policy : call_.job.policy;
  if (IsChosen()) {
    source_->calibrations = job_.chosen->calibrations;
  } else {
    KVERN_ASSIGN_OR_RETURN(source_->calibrations,
                           call_.workplace.models.Resolve(call_.model, asked.calibrations,
                                                          source_->input.layer_indices));
  }
  KVERN_ASSIGN_OR_RETURN(
      known_, call_.workplace.policies.Resolve(
                  asked, IsChosen() ? job_.chosen->available : AvailabilityOf(*source_)));
  policy_ = &known_->policy;
  DescribePolicy(*known_, &result_);
  if (asked.calibrations.empty()) DescribeObserved(source_->calibrations, *policy_, &result_);
  fields_ = FieldsFor(call_.job.fields, policy_->placement);
  if (policy_->placement == Placement::kToStore) KVERN_RETURN_IF_ERROR(CheckStoreId(job_));
  KVERN_RETURN_IF_ERROR(DecideCounts());
  identity_ = IsIdentity();
  KVERN_RETURN_IF_ERROR(CheckResponse());
  if (!identity_) {
    KVERN_RETURN_IF_ERROR(CheckShape(ClassOfCounts(plan_.counts.counts, source_->input.KvHeads())));
  }
  return WritesPool(policy_->placement) ? PlanBlocks() : absl::OkStatus();
}

absl::Status SequenceRun::DecideCounts() {
  if (IsChosen()) {
    const int64_t appended = source_->input.Tokens() - job_.chosen->slots->tokens;
    planned_ = WithAppended(job_.chosen->keep, *source_, policy_->positions, appended);
    plan_.counts = (*planned_)->counts;
    return absl::OkStatus();
  }
  const absl::Time start = absl::Now();
  KVERN_ASSIGN_OR_RETURN(plan_.counts, pipeline::PlanCounts(source_->input, *policy_));
  result_.micros.plan = MicrosSince(start);
  return absl::OkStatus();
}

absl::Status SequenceRun::PlanBlocks() {
  if (identity_) {
    KeepTable(*source_, &result_);
    return absl::OkStatus();
  }
  if (call_.job.keeps_plans && LeaveTable(*source_, policy_->placement, &result_)) {
    return absl::OkStatus();
  }
  const std::vector<int32_t>& counts = plan_.counts.counts;
  const int64_t longest = counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end());
  return PlanTable(*source_, policy_->placement, longest, &result_);
}

bool SequenceRun::Moves() const {
  if (call_.job.validate_only || policy_->placement == Placement::kIndicesOnly) return false;
  // A caller that gets bytes back gets them, changed or not.
  return !identity_ || policy_->placement == Placement::kReturn;
}

bool SequenceRun::SameStages(const SequenceRun& other) const {
  if (source_->dtype != other.source_->dtype) return false;
  return known_ == other.known_ || known_->stages == other.known_->stages;
}

absl::Status SequenceRun::Stage() {
  const bool scores = !policy_->scorers.empty() && !plan_.counts.EverythingStays(source_->input);
  if (!scores && !Moves()) return absl::OkStatus();
  return engine::Stage(call_.workplace.backend, source_.get());
}

void SequenceRun::Release() {
  Unstage(source_.get());
  plan_.rotation.reset();
}

pipeline::KeepTask SequenceRun::ToPlan() const {
  return {.input = &source_->input,
          .policy = policy_,
          .counts = &plan_.counts,
          .want_scores = fields_.scores};
}

absl::Status SequenceRun::TakePlan() {
  KVERN_CHECK(planned_.has_value());
  KVERN_RETURN_IF_ERROR(planned_->status());
  plan_ = **std::move(planned_);
  planned_.reset();
  result_.micros.plan += plan_.micros.plan;
  result_.micros.score = plan_.micros.score;
  result_.micros.select = plan_.micros.select;
  if (!identity_) KVERN_RETURN_IF_ERROR(CheckShape(plan_.shape_class));
  if (call_.job.keeps_plans) {
    const auto chosen = Choose(*source_, plan_);
    chosen->guessed_positions = guessed_positions_;
    result_.chosen = chosen;
  }
  return absl::OkStatus();
}

Placing* SequenceRun::ToPlace() {
  placing_.emplace(Placing{call_.workplace.backend, call_.stop, job_, call_.model.id, *source_,
                           *policy_, plan_, result_});
  return &*placing_;
}

absl::Status SequenceRun::Publish() {
  if (!identity_ && policy_->placement == Placement::kCopyTo) {
    KVERN_RETURN_IF_ERROR(Hit(Failpoint::kBeforePublish));
  }
  if (policy_->placement == Placement::kToStore && placing_.has_value()) {
    KVERN_RETURN_IF_ERROR(CommitToStore(*placing_, call_.workplace.store));
  }
  const bool advances = !identity_ && policy_->placement != Placement::kIndicesOnly;
  const uint64_t epoch = job_.epoch + (advances ? 1 : 0);
  if (source_->paged != nullptr) {
    call_.workplace.remembered.Remember(job_.sequence_id, epoch, slots_);
  }
  if (source_->stored != nullptr) call_.workplace.store.Touch(source_->stored->Info().id);
  result_.epoch = epoch;
  // What is published stands, so an error set here has nothing left to undo.
  const absl::Status late = Hit(Failpoint::kAfterPublish);
  if (!late.ok()) result_.warnings.push_back(std::string(late.message()));
  return absl::OkStatus();
}

// What the sequence's slots will hold, for the answer and for the next call.
void SequenceRun::DescribeSlots() {
  ScratchVector<int32_t> after = plan_.kept_positions;
  if (fields_.positions) result_.positions = after;
  if (source_->paged == nullptr) return;
  const pipeline::SequenceInput& input = source_->input;
  const bool moved = !identity_ && WritesPool(policy_->placement);
  const int64_t tokens = moved ? plan_.max_kept : input.Tokens();
  SlotPositions positions = {moved ? std::move(after) : input.positions,
                             moved || input.per_head_positions, input.logical_tokens};
  positions = Shared(std::move(positions), tokens);
  if (moved && policy_->positions == PositionMode::kRenumber) {
    positions.logical_tokens = plan_.max_kept;
  }
  // 0, 1, 2, ... is the default and needs no memory.
  if (positions.logical_tokens == tokens && !positions.per_head) return;
  slots_ = std::allocate_shared<RememberedSlots>(
      RecyclingAllocator<RememberedSlots>(),
      RememberedSlots{std::move(positions.values), positions.per_head, tokens,
                      positions.logical_tokens, Owner()});
}

// All that needs memory is done before the first byte moves.
absl::Status SequenceRun::Describe() {
  result_.outcome = identity_ ? Outcome::kNoop : Outcome::kApplied;
  DescribePlan(*source_, *policy_, plan_, &result_);
  DescribeSlots();
  if (fields_.kept) result_.kept = PaddedKeep(plan_);
  if (fields_.scores) result_.scores = std::move(plan_.scores);
  if (identity_ && policy_->placement == Placement::kToStore) {
    result_.stored_sequence = source_->stored->Info().id;
  }
  if (source_->paged == nullptr) return absl::OkStatus();
  if (identity_ || !WritesPool(policy_->placement)) {
    result_.publishable_prefix_tokens = source_->input.Tokens();
  } else if (policy_->placement == Placement::kCopyTo) {
    result_.publishable_prefix_tokens = source_->input.readonly_prefix_tokens;
  } else {
    const int64_t unmoved = UnmovedTokens(source_->input, plan_, *policy_);
    result_.publishable_prefix_tokens = unmoved - unmoved % source_->pool->spec.block_tokens;
  }
  return absl::OkStatus();
}

absl::Status SequenceRun::Finish() {
  DescribePacked(&result_);
  if (!fields_.k) result_.k.clear();
  if (!fields_.v) result_.v.clear();
  if (!fields_.packed || policy_->placement != Placement::kReturn) result_.packed.reset();
  return absl::OkStatus();
}

void SequenceRun::Notify() const {
  EngineEvents* const events = call_.workplace.events;
  if (events == nullptr) return;
  const memory::EngineLabel engine =
      source_ == nullptr ? memory::EngineLabel::kOther : source_->engine;
  const std::string reason = ReasonOf(result_.status);
  if (reason == "EPOCH_MISMATCH") {
    events->OnRejected(Rejection::kEpoch);
    events->OnEpochConflict(engine);
  }
  if (reason == "SHAPE_CLASS") events->OnRejected(Rejection::kShapeClass);
  if (reason == "SEQUENCE_POISONED") events->OnPoisoned(engine);
  if (absl::IsResourceExhausted(result_.status)) events->OnRejected(Rejection::kQuota);
  // A plan that moved nothing compressed nothing.
  if (call_.job.validate_only) return;
  NotifyStages(result_, events);
  events->OnSequence(result_, engine);
}

SequenceResult SequenceRun::Conclude() {
  if (!status_.ok()) {
    result_ = Refused(result_);
    result_.epoch = job_.epoch;
    // The old content is gone, so whatever was remembered of it is wrong.
    if (absl::IsDataLoss(status_)) call_.workplace.remembered.Forget(job_.sequence_id);
    result_.outcome = IsStop(status_) ? Outcome::kSkipped : Outcome::kFailed;
    result_.status = InRequest(status_, job_, index_);
  }
  Notify();
  return std::move(result_);
}

}  // namespace kvern::engine
