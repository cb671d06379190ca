// Golden files by name, and their tensors as plain vectors.
#ifndef KVERN_TESTS_GOLDEN_GOLDEN_FILE_H_
#define KVERN_TESTS_GOLDEN_GOLDEN_FILE_H_

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "kernels/base/dtype.h"

namespace kvern::golden {

inline std::string DataPath(const std::string& name) {
  return std::string(KVERN_TEST_DATA) + "/" + name + ".safetensors";
}

// A safetensors file below tests/data, read once. A tensor that is not there ends the test: the
// files are committed, so its name is wrong.
class GoldenFile {
 public:
  // "pride-1024", "golden/pride-1024-tri".
  static const GoldenFile& Of(const std::string& name) {
    static auto& files = *new std::map<std::string, std::unique_ptr<GoldenFile>>();
    std::unique_ptr<GoldenFile>& file = files[name];
    if (file == nullptr) file.reset(new GoldenFile(DataPath(name)));
    return *file;
  }

  const formats::Safetensors& contents() const { return contents_; }
  bool Has(const std::string& tensor) const { return contents_.Find(tensor) != nullptr; }
  const formats::TensorEntry& At(const std::string& tensor) const {
    return contents_.tensors.at(tensor);
  }
  double Number(const std::string& key) const { return std::stod(contents_.metadata.at(key)); }
  // F32, F16 or BF16 as f32.
  std::vector<float> Floats(const std::string& tensor) const {
    return formats::ToFloats(tensor, At(tensor)).value();
  }
  template <class T>
  std::vector<T> Values(const std::string& tensor) const {
    const formats::TensorEntry& entry = At(tensor);
    std::vector<T> values(entry.bytes.size() / sizeof(T));
    std::memcpy(values.data(), entry.bytes.data(), entry.bytes.size());
    return values;
  }
  std::vector<int32_t> Ints(const std::string& tensor) const { return Values<int32_t>(tensor); }
  // The N of every tensor `<method>.b<N>.kept`.
  std::set<int64_t> Budgets(const std::string& method) const {
    std::set<int64_t> budgets;
    const std::string prefix = method + ".b", suffix = ".kept";
    for (const auto& [name, entry] : contents_.tensors) {
      if (name.compare(0, prefix.size(), prefix) != 0 || !name.ends_with(suffix)) continue;
      const std::string digits =
          name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
      if (digits.find_first_not_of("0123456789") == std::string::npos) {
        budgets.insert(std::stoll(digits));
      }
    }
    return budgets;
  }

 private:
  explicit GoldenFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    contents_ = formats::ParseSafetensors(std::as_bytes(std::span(bytes_))).value();
  }

  std::vector<char> bytes_;
  formats::Safetensors contents_;
};

inline DType DTypeOf(const formats::TensorEntry& tensor) {
  return tensor.dtype == "F32" ? DType::kF32 : tensor.dtype == "F16" ? DType::kF16 : DType::kBF16;
}

}  // namespace kvern::golden

#endif  // KVERN_TESTS_GOLDEN_GOLDEN_FILE_H_
