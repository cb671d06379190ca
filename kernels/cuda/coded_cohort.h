// The packed tables of a cohort, checked and brought to the device for encode and decode.
#ifndef KVERN_KERNELS_CUDA_CODED_COHORT_H_
#define KVERN_KERNELS_CUDA_CODED_COHORT_H_

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kernels/base/kv_ref.h"
#include "kernels/base/rotation.h"
#include "kernels/cuda/coded_row.h"
#include "kernels/cuda/op.h"

namespace kvern::cuda {

// The way of a Hadamard rotation: decode goes back.
enum class Turn : uint8_t { kForward, kBack };

Lm4Tables MakeLm4Tables();

class CodedCohort {
 public:
  explicit CodedCohort(Op& op) : op_(op) {}

  // One sequence; the spans stay until Finish. A row that is not sound ends in KVERN_CHECK.
  void Add(const EncodeArgs& args);
  void Add(const DecodeArgs& args);

  // Uploads all that was added. At least one sequence has layers, or no row was added.
  CodingParams Finish(Turn turn);

  // Rows so far: those of the table added next start here.
  int64_t Count() const { return static_cast<int64_t>(rows_.size()); }

 private:
  struct Source {
    LayerRefs layers;
    std::span<const PackedRow> table;
    int64_t packed_bytes;
    TensorView<const Float16, 3> mean_key;
    const RotationTable* rotation;
  };
  void AddRows(const Source& source, const KeepList* keep, CodedSequence sequence);
  bool PairsServe(const RowShape& shape) const;

  Op& op_;
  std::vector<LayerRefs> layers_;
  std::vector<CodedSequence> sequences_;
  std::vector<const RotationTable*> rotations_;  // null where no row needs it
  std::vector<CodedRow> rows_;
  std::map<const KeepList*, const int32_t*> sources_;  // keys and values share one
  int32_t layer_count_ = 0;
  bool aligned_ = true;     // every CODES plane starts at a multiple of 16 bytes
  bool pairs_code_ = true;  // every row has a codec that the pairs' path knows
  bool has_sfv_ = false;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CODED_COHORT_H_
