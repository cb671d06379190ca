// A tensor is believed only after its extents, multiplied with care, equal the bytes that came.
#include "server/rpc/tensor_from_proto.h"

#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/status_macros.h"

namespace kvern::rpc {
namespace {

// One row, or all tokens when the positions are shared.
absl::Status CheckRow(const int32_t* row, int64_t count, const PositionRule& rule,
                      const FieldPath& path) {
  int64_t previous = -1;
  for (int64_t slot = 0; slot < count; ++slot) {
    if (row[slot] == -1) {
      for (; slot < count; ++slot) {
        if (row[slot] != -1) return BadField(path.At(slot), "got a position after a -1 fill");
      }
      return absl::OkStatus();
    }
    if (row[slot] <= previous) {
      return BadField(path.At(slot), absl::StrCat("got ", row[slot], " after ", previous,
                                                  ", want ascending positions from 0"));
    }
    previous = row[slot];
  }
  if (rule.below > 0 && previous >= rule.below) {
    return BadField(path,
                    absl::StrCat("got ", previous, ", want below num_logical_tokens ", rule.below));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DType> FromProto(v1::DType dtype, const FieldPath& path) {
  switch (dtype) {
    case v1::DTYPE_BF16:
      return DType::kBF16;
    case v1::DTYPE_F16:
      return DType::kF16;
    case v1::DTYPE_F32:
      return DType::kF32;
    default:
      return BadField(path, absl::StrCat("got ", static_cast<int>(dtype),
                                         ", want DTYPE_BF16, DTYPE_F16 or DTYPE_F32"));
  }
}

absl::StatusOr<DType> CheckTensor(const v1::Tensor& tensor, const TensorRule& rule,
                                  const FieldPath& path) {
  KVERN_ASSIGN_OR_RETURN(const DType dtype, FromProto(tensor.dtype(), path.Child("dtype")));
  const FieldPath shape = path.Child("shape");
  if (tensor.shape_size() != static_cast<int>(rule.most.size())) {
    return BadField(shape, absl::StrCat("got ", tensor.shape_size(), " axes, want ", rule.axes));
  }
  int64_t bytes = SizeOf(dtype);
  for (int axis = 0; axis < tensor.shape_size(); ++axis) {
    KVERN_RETURN_IF_ERROR(CheckRange(shape.At(axis), tensor.shape(axis), 0, rule.most[axis]));
    if (__builtin_mul_overflow(bytes, tensor.shape(axis), &bytes)) {
      return BadField(shape, absl::StrCat("got a size above 2^63 - 1 for ", rule.axes));
    }
  }
  if (bytes != static_cast<int64_t>(tensor.data().size())) {
    return BadField(path.Child("data"),
                    absl::StrCat("got ", tensor.data().size(), " bytes, want ", bytes, " for [",
                                 absl::StrJoin(tensor.shape(), ", "), "] ", Name(dtype)));
  }
  return dtype;
}

std::vector<float> ToFloats(const v1::Tensor& tensor, DType dtype) {
  std::vector<float> floats(tensor.data().size() / SizeOf(dtype));
  const char* bytes = tensor.data().data();
  VisitDType(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (size_t i = 0; i < floats.size(); ++i) {
      T element;
      std::memcpy(&element, bytes + i * sizeof(T), sizeof(T));
      floats[i] = ToFloat(element);
    }
  });
  return floats;
}

absl::Status CheckLayerIndices(const google::protobuf::RepeatedField<int32_t>& layers,
                               int64_t num_layers, const FieldPath& path) {
  KVERN_RETURN_IF_ERROR(CheckCount(path, layers.size(), num_layers, "layers"));
  int64_t previous = -1;
  for (int i = 0; i < layers.size(); ++i) {
    KVERN_RETURN_IF_ERROR(CheckRange(path.At(i), layers[i], 0, num_layers - 1));
    if (layers[i] <= previous) {
      return BadField(path.At(i), absl::StrCat("got ", layers[i], " after ", previous,
                                               ", want ascending layers"));
    }
    previous = layers[i];
  }
  return absl::OkStatus();
}

absl::Status CheckPositions(const v1::Positions& positions, const PositionRule& rule,
                            const FieldPath& path) {
  const FieldPath values = path.Child("values");
  const int64_t count = positions.values_size();
  if (!positions.per_head()) {
    if (rule.tokens >= 0 && count != rule.tokens) {
      return BadField(values,
                      absl::StrCat("got ", count, " positions, want one per token, ", rule.tokens));
    }
    for (int64_t slot = 0; slot < count; ++slot) {
      if (positions.values(slot) < 0) {
        return BadField(values.At(slot),
                        absl::StrCat("got ", positions.values(slot), ", want 0 or more"));
      }
    }
    return CheckRow(positions.values().data(), count, rule, values);
  }
  for (int64_t slot = 0; slot < count; ++slot) {
    KVERN_RETURN_IF_ERROR(CheckRange(values.At(slot), positions.values(slot), -1,
                                     std::numeric_limits<int32_t>::max()));
  }
  if (rule.tokens < 0) return absl::OkStatus();
  // Divided, not multiplied: rows is bounded only by the model.
  const bool whole_rows = rule.tokens == 0 ? count == 0 : count % rule.tokens == 0;
  if (!whole_rows || (rule.rows >= 0 && rule.tokens > 0 && count / rule.tokens != rule.rows)) {
    return BadField(values, absl::StrCat("got ", count, " positions, want ",
                                         rule.rows < 0 ? std::string("layers x kv_heads")
                                                       : absl::StrCat(rule.rows),
                                         " rows of ", rule.tokens));
  }
  for (int64_t first = 0; first < count; first += rule.tokens) {
    KVERN_RETURN_IF_ERROR(CheckRow(positions.values().data() + first, rule.tokens, rule, values));
  }
  return absl::OkStatus();
}

}  // namespace kvern::rpc
