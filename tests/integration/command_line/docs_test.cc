// Documents that list names are held to the build.
#include <fstream>
#include <iterator>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/pipeline/budgeter.h"
#include "server/pipeline/codec.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/scorer.h"
#include "server/pipeline/selector.h"
#include "tests/support/server_process.h"

namespace kvern {
namespace {

std::string ReadDocument(const std::string& name) {
  std::ifstream file(std::string(KVERN_TEST_DATA) + "/../../" + name);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

TEST(Documents, ListTheStagesOfThisBuild) {
  const support::CommandOutput stages =
      support::RunCommand({support::BinaryPath("kvern"), "stages", "--local", "--markdown"});
  ASSERT_EQ(stages.exit_code, 0) << stages.err;
  const std::string document = ReadDocument("docs/stages.md");
  const size_t tables = document.find("| budgeter |");
  ASSERT_NE(tables, std::string::npos);
  EXPECT_EQ(document.substr(tables), stages.out)
      << "run: kvern stages --local --markdown, and put it below the heading of docs/stages.md";
}

TEST(Documents, NameEveryStageInTheReadme) {
  std::vector<std::string> names;
  for (const auto& entry : pipeline::Budgeters()) names.push_back(entry.info.name);
  for (const auto& entry : pipeline::Scorers()) names.push_back(entry.info.name);
  for (const auto& entry : pipeline::Selectors()) names.push_back(entry.info.name);
  for (const auto& entry : pipeline::Codecs()) names.push_back(entry.info.name);
  for (const auto& preset : pipeline::Presets()) names.push_back(preset.name);
  const std::string readme = ReadDocument("README.md");
  for (const std::string& name : names) {
    EXPECT_THAT(readme, testing::HasSubstr("`" + name + "`"));
  }
}

}  // namespace
}  // namespace kvern
