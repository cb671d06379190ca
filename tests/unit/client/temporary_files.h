// Files of one test, gone with it.
#ifndef KVERN_TESTS_UNIT_CLIENT_TEMPORARY_FILES_H_
#define KVERN_TESTS_UNIT_CLIENT_TEMPORARY_FILES_H_

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "formats/safetensors.h"
#include "gtest/gtest.h"

namespace kvern {

class TemporaryFiles : public ::testing::Test {
 protected:
  TemporaryFiles() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvern-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  ~TemporaryFiles() override { std::filesystem::remove_all(folder_); }

  std::string PathOf(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(PathOf(name), std::ios::binary) << bytes;
    return PathOf(name);
  }
  std::string Write(const std::string& name, const formats::Safetensors& contents) const {
    return Write(name, formats::WriteSafetensors(contents));
  }
  std::string Read(const std::string& name) const {
    std::ifstream file(PathOf(name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }
  size_t FileCount() const {
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_)) ++count;
    return count;
  }

 private:
  std::filesystem::path folder_;
};

}  // namespace kvern

#endif  // KVERN_TESTS_UNIT_CLIENT_TEMPORARY_FILES_H_
