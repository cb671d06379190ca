// docs/quickstart.md holds what runs here, word for word.
#include <iostream>
#include <sstream>

#include "client/cpp/cache_model.h"
#include "client/cpp/client.h"
#include "client/cpp/compress_file.h"
#include "tests/integration/command_line/command_line.h"

namespace kvern {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr char kRoot[] = KVERN_TEST_DATA "/../../";
constexpr char kScript[] = KVERN_TEST_DATA "/../integration/command_line/quickstart_cache.py";

std::string TextOf(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

class Quickstart : public CommandLineTest {
 protected:
  std::string WriteCacheInPython() {
    const auto python =
        support::RunCommand({"/usr/bin/env", "python3", kScript, PathOf("mine.safetensors")});
    EXPECT_EQ(python.exit_code, 0) << python.err;
    return PathOf("mine.safetensors");
  }
};

TEST_F(Quickstart, WritesACacheInPythonThatKvernTakes) {
  const std::string cache = WriteCacheInPython();
  const Result result = Compress(cache, "small", AtServer());
  EXPECT_EQ(result.said["outcome"], "OUTCOME_APPLIED");
  EXPECT_LE(result.said["bytes_after"].get<int64_t>() * 4,
            result.said["bytes_before"].get<int64_t>());
  const Result half = Compress(cache, "half", AtServer() + Words{"--policy", "evict50"});
  EXPECT_THAT(half.file->Ints("kept_counts"), Each(128));
  EXPECT_EQ(half.file->At("k").dtype, "F16");
  EXPECT_EQ(half.file->At("k").shape, (std::vector<int64_t>{4, 2, 128, 64}));
  EXPECT_EQ(half.file->Contents().Metadata("model"), "my-model");
}

TEST_F(Quickstart, ReadsTheResultInPython) {
  Kvern(Words{"compress", WriteCacheInPython(), "-o", PathOf("half"), "--policy", "evict50",
              "--local"});
  const std::string page = TextOf(std::string(kRoot) + "docs/quickstart.md");
  const std::string begin = "```python\n# read_result.py\n";
  const size_t at = page.find(begin);
  ASSERT_NE(at, std::string::npos);
  const size_t end = page.find("```\n", at + 3);
  Write("read_result.py", page.substr(at + 10, end - at - 10));
  const auto python =
      support::RunCommand({"/usr/bin/env", "python3", PathOf("read_result.py"), PathOf("half")});
  EXPECT_EQ(python.exit_code, 0) << python.err;
  EXPECT_THAT(python.out, HasSubstr("(4, 2, 128, 64)"));
  EXPECT_THAT(python.out, HasSubstr("layer 0, head 0 kept 128 tokens: 0 1 2 3 "));
}

TEST_F(Quickstart, CallsTheServerInFiveLinesOfCpp) {
  std::ostringstream out;
  std::streambuf* const screen = std::cout.rdbuf(out.rdbuf());
  {
    auto client = kvern::client::Client::Connect(Server().Address()).value();
    auto cache = kvern::client::CacheFile::Open(WriteCacheInPython()).value();
    auto model = client.RegisterModel(kvern::client::ModelOf(cache).value()).value();
    auto small = kvern::client::CompressFile(client, cache, {.model = model.name()}).value();
    std::cout << small.result.num_physical_tokens() << " tokens kept\n";
    EXPECT_TRUE(small.Packed());
  }
  std::cout.rdbuf(screen);
  EXPECT_THAT(out.str(), ::testing::MatchesRegex("[0-9]+ tokens kept\n"));
}

TEST_F(Quickstart, ShowsTheCodeThatWasRun) {
  const std::string page = TextOf(std::string(kRoot) + "docs/quickstart.md");
  EXPECT_THAT(page, HasSubstr("```python\n" + TextOf(kScript) + "```\n"));
  // The five lines of client.h, without their comment marks.
  std::istringstream header(TextOf(std::string(kRoot) + "client/cpp/client.h"));
  int lines = 0;
  for (std::string line; std::getline(header, line);) {
    if (line.rfind("//   ", 0) != 0) continue;
    EXPECT_THAT(page, HasSubstr(line.substr(5) + "\n"));
    ++lines;
  }
  EXPECT_EQ(lines, 5);
}

}  // namespace
}  // namespace kvern
