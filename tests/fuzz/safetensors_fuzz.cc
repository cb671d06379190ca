// Any bytes as a file: refused, or every tensor lies inside it and the whole writes and reads back.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "formats/safetensors.h"
#include "kernels/base/status_macros.h"

using kvern::formats::ElementBytes;
using kvern::formats::ParseSafetensors;
using kvern::formats::Safetensors;
using kvern::formats::TensorEntry;
using kvern::formats::WriteSafetensors;

namespace {

std::span<const std::byte> BytesOf(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

void CheckTensor(const std::string& name, const TensorEntry& tensor) {
  int64_t bytes = ElementBytes(tensor.dtype);
  KVERN_CHECK(bytes > 0);
  for (const int64_t extent : tensor.shape) bytes *= extent;
  KVERN_CHECK(bytes == static_cast<int64_t>(tensor.bytes.size()));
  unsigned sum = 0;
  for (const std::byte byte : tensor.bytes) sum += std::to_integer<unsigned>(byte);
  static_cast<volatile void>(sum);  // every byte can be read
  static_cast<void>(ToFloats(name, tensor));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto parsed = ParseSafetensors({reinterpret_cast<const std::byte*>(data), size});
  if (!parsed.ok()) return 0;
  for (const auto& [name, tensor] : parsed->tensors) CheckTensor(name, tensor);
  const std::string written = WriteSafetensors(*parsed);
  const auto again = ParseSafetensors(BytesOf(written));
  KVERN_CHECK(again.ok());
  KVERN_CHECK(again->metadata == parsed->metadata);
  KVERN_CHECK(again->tensors.size() == parsed->tensors.size());
  KVERN_CHECK(WriteSafetensors(*again) == written);
  return 0;
}
