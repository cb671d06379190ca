// The program as a user runs it: kvern in a process of its own, against a kvernd in another.
#ifndef KVERN_TESTS_INTEGRATION_COMMAND_LINE_COMMAND_LINE_H_
#define KVERN_TESTS_INTEGRATION_COMMAND_LINE_COMMAND_LINE_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/server_process.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern {

inline constexpr char kPride[] = KVERN_TEST_DATA "/pride-1024.safetensors";
inline constexpr char kQwen[] = KVERN_TEST_DATA "/qwen-512.safetensors";
inline constexpr char kPrideCalibration[] = KVERN_TEST_DATA "/smollm2-calibration.safetensors";
inline constexpr char kPrideMoments[] = KVERN_TEST_DATA "/smollm2-query-moments.safetensors";
inline constexpr char kQwenCalibration[] = KVERN_TEST_DATA "/qwen-calibration.safetensors";
inline constexpr char kQwenMoments[] = KVERN_TEST_DATA "/qwen-query-moments.safetensors";

using Words = std::vector<std::string>;

inline Words operator+(Words left, const Words& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

// A safetensors file and the bytes it borrows.
class TensorFile {
 public:
  explicit TensorFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    auto parsed = formats::ParseSafetensors(std::as_bytes(std::span(bytes_)));
    EXPECT_TRUE(parsed.ok()) << path << ": " << parsed.status();
    if (parsed.ok()) contents_ = *std::move(parsed);
  }
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  const formats::Safetensors& Contents() const { return contents_; }
  bool Has(const std::string& name) const { return contents_.Find(name) != nullptr; }
  // Empty when absent.
  formats::TensorEntry At(const std::string& name) const {
    const formats::TensorEntry* entry = contents_.Find(name);
    return entry == nullptr ? formats::TensorEntry() : *entry;
  }
  std::vector<std::byte> Bytes(const std::string& name) const {
    const formats::TensorEntry entry = At(name);
    return {entry.bytes.begin(), entry.bytes.end()};
  }
  template <class T>
  std::vector<T> Values(const std::string& name) const {
    const formats::TensorEntry entry = At(name);
    std::vector<T> values(entry.bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), entry.bytes.data(), entry.bytes.size());
    return values;
  }
  std::vector<int32_t> Ints(const std::string& name) const { return Values<int32_t>(name); }
  std::vector<float> Floats(const std::string& name) const {
    auto values = formats::ToFloats(name, At(name));
    EXPECT_TRUE(values.ok()) << values.status();
    return values.ok() ? *std::move(values) : std::vector<float>();
  }

 private:
  std::string bytes_;
  formats::Safetensors contents_;
};

// sum((a - b)^2) / sum(a^2)
inline double NormalizedError(const std::vector<float>& want, const std::vector<float>& got) {
  double error = 0, power = 0;
  EXPECT_EQ(want.size(), got.size());
  for (size_t i = 0; i < std::min(want.size(), got.size()); ++i) {
    error += std::pow(static_cast<double>(want[i]) - got[i], 2);
    power += std::pow(static_cast<double>(want[i]), 2);
  }
  return error / power;
}

// One server for all cases of the process; it knows nothing at first.
class CommandLineTest : public TemporaryFiles {
 protected:
  static support::ServerProcess& Server() {
    static const std::unique_ptr<support::ServerProcess> server = support::ServerProcess::Start();
    EXPECT_NE(server, nullptr);
    return *server;
  }
  static Words AtServer() { return {"--server", Server().Address()}; }

  // Runs `kvern words...`; the exit code must be `code`.
  static support::CommandOutput Kvern(const Words& words, int code = 0) {
    const support::CommandOutput output =
        support::RunCommand(Words{support::BinaryPath("kvern")} + words);
    EXPECT_EQ(output.exit_code, code) << ::testing::PrintToString(words) << "\n" << output.err;
    return output;
  }
  static nlohmann::json KvernJson(const Words& words) {
    const support::CommandOutput output = Kvern(words + Words{"--json"});
    nlohmann::json json = nlohmann::json::parse(output.out, nullptr, /*allow_exceptions=*/false);
    // Ends the case: a missing field of a const object would abort all of them.
    if (!json.is_object()) throw std::runtime_error("want a JSON object, got: " + output.out);
    return json;
  }
  // compress IN -o NAME; the file and, as JSON, what was said of it.
  struct Result {
    std::unique_ptr<TensorFile> file;
    nlohmann::json said;
  };
  Result Compress(const std::string& input, const std::string& name, const Words& how) const {
    Result result;
    result.said = KvernJson(Words{"compress", input, "-o", PathOf(name)} + how);
    result.file = std::make_unique<TensorFile>(PathOf(name));
    return result;
  }
};

}  // namespace kvern

#endif  // KVERN_TESTS_INTEGRATION_COMMAND_LINE_COMMAND_LINE_H_
