// Scores, masks and tables as the pipeline would hand them over; K and V never leave the device.
#include "tests/bench/gpu/stages.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/packed_layout.h"
#include "kernels/base/status_macros.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern::bench {

class StageInputs {
 public:
  static absl::StatusOr<std::shared_ptr<StageInputs>> Make(Backend& backend,
                                                           const CacheShape& shape, int64_t kept);

  absl::Status TriAttention(Backend& backend);
  absl::Status KeyDiff(Backend& backend);
  absl::Status ExpectedAttention(Backend& backend);
  absl::Status TopK(Backend& backend);
  absl::Status GatherOut(Backend& backend);
  absl::Status GatherInPlace(Backend& backend);
  absl::Status Encode(Backend& backend, CodecSpec codec);
  absl::Status Decode(Backend& backend);

 private:
  MaskView Shared(const std::vector<uint8_t>& row) const {
    return {row.data(), {shape_.layers, shape_.kv_heads, shape_.tokens}, {0, 0, 1}};
  }
  ScoreView Scores() const {
    return DenseView(reinterpret_cast<float*>(scores_.data()), shape_.layers, shape_.kv_heads,
                     shape_.tokens);
  }

  CacheShape shape_;
  int64_t kept_ = 0;
  DeviceRows keys_, values_, kept_keys_, kept_values_;
  Buffer scores_;
  Buffer packed_;
  RotationTable rotation_;
  std::vector<uint8_t> all_, none_;  // [tokens]
  std::vector<float> u_, w_;
  std::vector<double> linear_, factors_;
  KeepList keep_;  // what TopK chose last; every token at first
  KeepList everything_;
  support::PackedCase planned_;
};

absl::StatusOr<std::shared_ptr<StageInputs>> StageInputs::Make(Backend& backend,
                                                               const CacheShape& shape,
                                                               int64_t kept) {
  auto inputs = std::make_shared<StageInputs>();
  inputs->shape_ = shape;
  inputs->kept_ = kept;
  KVERN_ASSIGN_OR_RETURN(inputs->keys_, MakeRows(backend, shape, shape.tokens));
  KVERN_ASSIGN_OR_RETURN(inputs->values_, MakeRows(backend, shape, shape.tokens));
  KVERN_ASSIGN_OR_RETURN(inputs->kept_keys_, MakeRows(backend, shape, kept));
  KVERN_ASSIGN_OR_RETURN(inputs->kept_values_, MakeRows(backend, shape, kept));
  KVERN_RETURN_IF_ERROR(FillNormal(backend, inputs->keys_, /*seed=*/1));
  KVERN_RETURN_IF_ERROR(FillNormal(backend, inputs->values_, /*seed=*/2));
  KVERN_ASSIGN_OR_RETURN(inputs->scores_, backend.Allocate(shape.Rows() * shape.tokens * 4));
  inputs->all_.assign(shape.tokens, 1);
  inputs->none_.assign(shape.tokens, 0);
  const int64_t bands = shape.head_dim / 2;
  inputs->rotation_ =
      support::RotationOf(RopeLayout::kHalf, static_cast<int32_t>(bands), shape.tokens);
  inputs->u_ = support::RandomFloats(shape.layers * shape.q_heads * shape.head_dim, /*seed=*/3);
  inputs->w_ = support::RandomFloats(shape.layers * shape.q_heads * bands, /*seed=*/4);
  inputs->linear_ =
      support::RandomDoubles(shape.layers * shape.q_heads * shape.head_dim, /*seed=*/5);
  inputs->factors_ =
      support::RandomDoubles(shape.layers * shape.q_heads * 8 * shape.head_dim, /*seed=*/6);
  const std::vector<int32_t> counts(shape.Rows(), static_cast<int32_t>(kept));
  inputs->keep_ = KeepList::WithCounts(
      DenseView(static_cast<const int32_t*>(counts.data()), shape.layers, shape.kv_heads));
  inputs->everything_ = support::KeepEvery(inputs->keys_.refs, 0, 1);
  inputs->planned_ = support::PlanRows(inputs->keys_.refs, inputs->everything_, {CodecId::kI8t, 0});
  KVERN_ASSIGN_OR_RETURN(inputs->packed_, backend.Allocate(2 * inputs->planned_.bytes));
  return inputs;
}

absl::Status StageInputs::TriAttention(Backend& backend) {
  const int64_t bands = shape_.head_dim / 2;
  TriAttentionArgs args;
  args.keys = keys_.refs;
  args.bands = static_cast<int32_t>(bands);
  args.q_heads = static_cast<int32_t>(shape_.q_heads);
  args.u = DenseView(static_cast<const float*>(u_.data()), shape_.layers, shape_.q_heads,
                     int64_t{1}, shape_.head_dim);
  args.w = DenseView(static_cast<const float*>(w_.data()), shape_.layers, shape_.q_heads, bands);
  args.candidates = Shared(all_);
  return backend.TriAttention(args, Scores());
}

absl::Status StageInputs::KeyDiff(Backend& backend) {
  return backend.KeyDiff({.keys = keys_.refs, .unrotate = &rotation_, .alive = Shared(all_)},
                         Scores());
}

absl::Status StageInputs::ExpectedAttention(Backend& backend) {
  ExpectedAttentionArgs args;
  args.keys = keys_.refs;
  args.values = values_.refs;
  args.q_heads = static_cast<int32_t>(shape_.q_heads);
  args.rank = 8;
  args.linear = DenseView(static_cast<const double*>(linear_.data()), shape_.layers, shape_.q_heads,
                          shape_.head_dim);
  args.factors = DenseView(static_cast<const double*>(factors_.data()), shape_.layers,
                           shape_.q_heads, int64_t{8}, shape_.head_dim);
  args.diagonal = args.linear;
  args.counted = Shared(all_);
  args.log = true;
  return backend.ExpectedAttention(args, Scores());
}

absl::Status StageInputs::TopK(Backend& backend) {
  return backend.TopK({.scores = Scores(), .candidates = Shared(all_), .forced = Shared(none_)},
                      &keep_);
}

absl::Status StageInputs::GatherOut(Backend& backend) {
  const GatherArgs cohort[] = {
      {.in = keys_.refs, .keep = &keep_, .out = kept_keys_.refs},
      {.in = values_.refs, .keep = &keep_, .out = kept_values_.refs},
  };
  return backend.Gather(cohort);
}

// Moves within the cache: what it leaves is as good an input as before.
absl::Status StageInputs::GatherInPlace(Backend& backend) {
  const GatherArgs cohort[] = {
      {.in = keys_.refs, .keep = &keep_, .out = keys_.refs, .in_place = true},
      {.in = values_.refs, .keep = &keep_, .out = values_.refs, .in_place = true},
  };
  return backend.Gather(cohort);
}

absl::Status StageInputs::Encode(Backend& backend, CodecSpec codec) {
  planned_ = support::PlanRows(keys_.refs, everything_, codec);
  EncodeCounts counts[2];
  const auto part = [&](int64_t role) {
    return std::span<std::byte>(packed_.data() + role * planned_.bytes, planned_.bytes);
  };
  const EncodeArgs cohort[] = {
      {.rows = keys_.refs,
       .keep = &everything_,
       .table = planned_.table,
       .mean_key = {},
       .rotation = nullptr,
       .packed = part(0),
       .counts = &counts[0]},
      {.rows = values_.refs,
       .keep = &everything_,
       .table = planned_.table,
       .mean_key = {},
       .rotation = nullptr,
       .packed = part(1),
       .counts = &counts[1]},
  };
  return backend.Encode(cohort);
}

absl::Status StageInputs::Decode(Backend& backend) {
  const std::span<const std::byte> bytes(packed_.data(), planned_.bytes);
  const DecodeArgs args = {.packed = bytes,
                           .table = planned_.table,
                           .mean_key = {},
                           .rotation = nullptr,
                           .rows = values_.refs};
  return backend.Decode(args);
}

absl::StatusOr<Stages> MakeStages(Backend& backend, const CacheShape& shape, int64_t kept) {
  KVERN_ASSIGN_OR_RETURN(std::shared_ptr<StageInputs> inputs,
                         StageInputs::Make(backend, shape, kept));
  const int64_t keys = shape.Bytes();
  const int64_t scores = shape.Rows() * shape.tokens * 4;
  const int64_t moved = 4 * shape.Rows() * kept * shape.head_dim * 2;  // K and V, read and written
  Stages made;
  made.inputs = inputs;
  const auto add = [&](const char* name, int64_t bytes, auto method) {
    made.stages.push_back(
        {name, bytes, [inputs, method](Backend& on) { return ((*inputs).*method)(on); }});
  };
  add("score:triattention", keys + scores, &StageInputs::TriAttention);
  add("score:keydiff", keys + scores, &StageInputs::KeyDiff);
  add("score:expected_attention", 2 * keys + scores, &StageInputs::ExpectedAttention);
  add("select:topk", scores, &StageInputs::TopK);
  add("move:copy", moved, &StageInputs::GatherOut);
  add("move:in_place", moved, &StageInputs::GatherInPlace);
  made.stages.push_back({"encode:lm4", 2 * keys + keys / 2, [inputs](Backend& on) {
                           return inputs->Encode(on, {CodecId::kLm4, 0});
                         }});
  made.stages.push_back({"encode:i8t", 3 * keys, [inputs](Backend& on) {
                           return inputs->Encode(on, {CodecId::kI8t, 0});
                         }});
  add("decode:i8t", keys + keys / 2, &StageInputs::Decode);
  return made;
}

}  // namespace kvern::bench
