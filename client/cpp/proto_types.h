// Element types in the words of the wire, of kernels/base and of safetensors files.
#ifndef KVERN_CLIENT_CPP_PROTO_TYPES_H_
#define KVERN_CLIENT_CPP_PROTO_TYPES_H_

#include <optional>
#include <string>

#include "kernels/base/dtype.h"
#include "kvern/v1/types.pb.h"

namespace kvern::client {

constexpr v1::DType ToProto(DType dtype) {
  return dtype == DType::kBF16  ? v1::DTYPE_BF16
         : dtype == DType::kF16 ? v1::DTYPE_F16
                                : v1::DTYPE_F32;
}

// nullopt for UNSPECIFIED and values this build does not know.
constexpr std::optional<DType> FromProto(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_BF16:
      return DType::kBF16;
    case v1::DTYPE_F16:
      return DType::kF16;
    case v1::DTYPE_F32:
      return DType::kF32;
    default:
      return std::nullopt;
  }
}

// `BF16`, `F16`, `F32`, as safetensors files write them.
constexpr const char* FileDType(DType dtype) {
  return dtype == DType::kBF16 ? "BF16" : dtype == DType::kF16 ? "F16" : "F32";
}

inline std::optional<DType> FromFileDType(const std::string& text) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (text == FileDType(dtype)) return dtype;
  }
  return std::nullopt;
}

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_PROTO_TYPES_H_
