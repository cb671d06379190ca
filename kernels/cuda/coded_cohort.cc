// Offsets instead of pointers until the launch: what did not fit into memory is then a null base
// that nothing was added to.
#include "kernels/cuda/coded_cohort.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "kernels/base/coding.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/lm4_table.h"
#include "kernels/base/sfv_table.h"
#include "kernels/base/status_macros.h"

namespace kvern::cuda {
namespace {

constexpr bool ShiftsAgree() {
  for (uint32_t i = 0; i < std::size(kLm4Shifts); ++i) {
    if (Lm4Shift(i) != static_cast<uint32_t>(kLm4Shifts[i])) return false;
  }
  return true;
}
static_assert(ShiftsAgree());

DeviceHadamard UploadHadamard(Op& op, int32_t head_dim, Turn turn) {
  const Hadamard& hadamard = HadamardOf(head_dim);
  KVERN_CHECK(hadamard.blocks.size() <= kMaxHadamardBlocks);
  DeviceHadamard device;
  device.signs = op.Upload(hadamard.signs);
  for (const HadamardBlock& block : hadamard.blocks) {
    DeviceHadamardBlock& to = device.block[device.blocks++];
    to.first = block.first;
    to.base_order = block.base_order;
    to.log2_run = std::countr_zero(static_cast<uint32_t>(block.run));
    to.order = block.Order();
    to.scale = block.scale;
    if (block.base == nullptr) continue;
    const size_t entries = static_cast<size_t>(block.base_order) * block.base_order;
    to.base = op.Upload(std::span(turn == Turn::kForward ? block.base : block.transposed, entries));
  }
  return device;
}

// The codecs of the path that keeps rows in registers.
bool PairsCode(CodecId codec) {
  return codec == CodecId::kRaw16 || codec == CodecId::kI8t || codec == CodecId::kLm4;
}

std::vector<uint32_t> SfvWords() {
  std::vector<uint32_t> words(std::begin(kSfv3Words), std::end(kSfv3Words));
  words.insert(words.end(), std::begin(kSfv2Words), std::end(kSfv2Words));
  return words;
}

}  // namespace

Lm4Tables MakeLm4Tables() {
  Lm4Tables tables;
  std::copy(std::begin(kLm4Levels), std::end(kLm4Levels), tables.levels);
  for (int cell = 0; cell < kLm4Cells; ++cell) {
    // More than what rounding moves the edge of a cell; with it a cell is still below 0.257.
    constexpr float kSlack = 0.001f;
    const float low = Lm4CellLow(cell) - kSlack;
    uint32_t below = 0;
    while (below < kLm4Boundaries && Lm4Boundary(below) < low) ++below;
    const float boundary = below < kLm4Boundaries ? Lm4Boundary(below) : kLm4Never;
    const uint32_t bits = std::bit_cast<uint32_t>(boundary);
    KVERN_CHECK((bits & kLm4OffsetMask) == 0);
    tables.cells[cell] = bits | below * 4;
  }
  return tables;
}

void CodedCohort::Add(const EncodeArgs& args) {
  CodedSequence sequence;
  sequence.packed = op_.InOut(args.packed);
  const auto [at, added] = sources_.try_emplace(args.keep, nullptr);
  if (added) at->second = op_.Upload(args.keep->tokens);
  sequence.sources = at->second;
  AddRows({args.rows, args.table, std::ssize(args.packed), args.mean_key, args.rotation}, args.keep,
          sequence);
}

void CodedCohort::Add(const DecodeArgs& args) {
  CodedSequence sequence;
  sequence.packed = const_cast<std::byte*>(op_.In(args.packed));  // decode only reads it
  AddRows({args.rows, args.table, std::ssize(args.packed), args.mean_key, args.rotation}, nullptr,
          sequence);
}

void CodedCohort::AddRows(const Source& source, const KeepList* keep, CodedSequence sequence) {
  bool rope_mean = false;
  for (const PackedRow& row : source.table) {
    KVERN_CHECK(IsSound(row, source.layers, source.packed_bytes));
    const int64_t slots =
        keep == nullptr ? source.layers[row.layer].tokens : keep->Count(row.layer, row.kv_head);
    KVERN_CHECK(SlotsEndBy(row, slots));
    CodedRow coded;
    coded.codec = static_cast<CodecId>(row.codec);
    const PackedPlanes planes = PlanesOf(row, source.layers[row.layer]);
    coded.codes = planes.codes;
    coded.signs = static_cast<int32_t>(planes.signs - planes.codes);
    coded.scales = static_cast<int32_t>(planes.scales - planes.codes);
    coded.zeros = static_cast<int32_t>(planes.zeros - planes.codes);
    coded.code_row_bytes = static_cast<int32_t>(planes.code_row_bytes);
    if (keep != nullptr) {
      coded.sources = keep->offsets[row.layer * keep->kv_heads + row.kv_head] + row.first_slot;
    }
    coded.sequence = static_cast<int32_t>(sequences_.size());
    coded.kv = layer_count_ + static_cast<int32_t>(row.layer);
    coded.layer = static_cast<int32_t>(row.layer);
    coded.head = static_cast<int32_t>(row.kv_head);
    coded.first_slot = static_cast<int32_t>(row.first_slot);
    coded.tokens = static_cast<uint8_t>(row.tokens);
    coded.hadamard = UsesHadamard(row);
    coded.rope_mean = UsesRopeMean(row) && coded.codec != CodecId::kRaw16;
    rope_mean = rope_mean || coded.rope_mean;
    pairs_code_ = pairs_code_ && PairsCode(coded.codec);
    has_sfv_ = has_sfv_ || coded.codec == CodecId::kSfv2 || coded.codec == CodecId::kSfv3;
    aligned_ = aligned_ && coded.codes % static_cast<int64_t>(kPlaneAlign) == 0;
    rows_.push_back(coded);
  }
  aligned_ = aligned_ && reinterpret_cast<uintptr_t>(sequence.packed) % kPlaneAlign == 0;
  if (rope_mean) {
    sequence.mean_key = op_.UploadDense(source.mean_key);
    sequence.kv_heads = static_cast<int32_t>(source.mean_key.shape[1]);
  }
  rotations_.push_back(rope_mean ? source.rotation : nullptr);
  sequences_.push_back(sequence);
  layers_.push_back(source.layers);
  layer_count_ += static_cast<int32_t>(source.layers.size());
}

bool CodedCohort::PairsServe(const RowShape& shape) const {
  const bool fits = shape.dtype != DType::kF32 && (shape.head_dim == 64 || shape.head_dim == 128);
  return fits && pairs_code_ && shape.access == RowAccess::kVector && aligned_ &&
         std::all_of(rotations_.begin(), rotations_.end(), [&](const RotationTable* table) {
           return table == nullptr ||
                  (table->layout == RopeLayout::kHalf && 2 * table->bands == shape.head_dim);
         });
}

CodingParams CodedCohort::Finish(Turn turn) {
  CodingParams params;
  const Layers layers =
      op_.AddLayers(layers_, turn == Turn::kForward ? Access::kRead : Access::kReadWrite);
  if (rows_.empty()) return params;
  params.shape = layers.shape;
  params.path = PairsServe(layers.shape) ? CodingPath::kPairs : CodingPath::kGroups;
  params.rows = op_.Upload(rows_);
  params.count = Count();
  params.sequences = op_.Upload(sequences_);
  params.rotations = op_.AddRotations(rotations_);
  params.layers = layers.layers;
  params.hadamard = UploadHadamard(op_, layers.shape.head_dim, turn);
  params.lm4 = MakeLm4Tables();
  if (has_sfv_) params.sfv_words = op_.Upload(SfvWords());
  return params;
}

}  // namespace kvern::cuda
