// The program from the outside: grammar, messages, exit codes.
#include "client/cli/app.h"

#include <sstream>

#include "client/cli/errors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "nlohmann/json.hpp"
#include "tests/unit/client/small_cache.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Outcome {
  int code;
  std::string out;
  std::string err;
};

Outcome RunWith(const std::vector<std::string>& arguments) {
  std::ostringstream out, err;
  const Console console{.out = out, .err = err, .width = 100};
  const int code = Run(arguments, console);
  return {code, out.str(), err.str()};
}

class AppTest : public TemporaryFiles {};

TEST_F(AppTest, HelpTeachesWithExamples) {
  const Outcome help = RunWith({"--help"});
  EXPECT_EQ(help.code, kExitOk);
  for (const char* verb : {"compress", "plan", "inspect", "unpack", "stages", "models", "pools",
                           "store", "info", "ping", "bench", "Examples", "--local"}) {
    EXPECT_THAT(help.out, HasSubstr(verb));
  }
  const Outcome verb = RunWith({"compress", "--help"});
  EXPECT_EQ(verb.code, kExitOk);
  EXPECT_THAT(verb.out, HasSubstr("--keep-ratio"));
  EXPECT_THAT(verb.out, HasSubstr("kvern compress in.safetensors -o"));
}

TEST_F(AppTest, PrintsItsVersion) {
  const Outcome version = RunWith({"--version"});
  EXPECT_EQ(version.code, kExitOk);
  EXPECT_THAT(version.out, HasSubstr("kvern 0."));
}

TEST_F(AppTest, CallsABadCommandLineAUsageError) {
  for (const std::vector<std::string>& line : std::vector<std::vector<std::string>>{
           {},
           {"nonsense"},
           {"compress"},
           {"compress", "a", "--no-such-flag"},
           {"compress", "a"},
           {"ping", "--local", "--server", "unix:/x"},
           {"ping", "--timeout", "never", "--local"},
           {"ping", "--backend", "ref", "--server", "unix:/x"},
           {"compress", "a", "-o", "b", "--budget-tokens", "5", "--keep-ratio", "0.5"},
           {"compress", "a", "-o", "b", "--via", "pigeon"}}) {
    const Outcome outcome = RunWith(line);
    EXPECT_EQ(outcome.code, kExitUsage) << ::testing::PrintToString(line) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("next:"));
    EXPECT_THAT(outcome.out, IsEmpty());
  }
}

TEST_F(AppTest, SaysThatNoServerIsThereAndWhatToDo) {
  for (const std::vector<std::string>& line : std::vector<std::vector<std::string>>{
           {"ping", "--server", "unix:/nonexistent/k.sock"},
           {"--server", "unix:/nonexistent/k.sock", "info"},
           {"store", "list", "--server", "/nonexistent/k.sock"}}) {
    const Outcome outcome = RunWith(line);
    EXPECT_EQ(outcome.code, kExitUnreachable) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr("--local"));
  }
}

TEST_F(AppTest, RefusesAFileThatIsNotThere) {
  const Outcome outcome = RunWith({"inspect", PathOf("none")});
  EXPECT_EQ(outcome.code, kExitRefused);
  EXPECT_THAT(outcome.err, HasSubstr("NOT_FOUND"));
}

TEST_F(AppTest, InspectsAPlainCache) {
  const SmallCache cache;
  const std::string path = Write("a", cache.File());
  const Outcome text = RunWith({"inspect", path});
  EXPECT_EQ(text.code, kExitOk) << text.err;
  EXPECT_THAT(text.out, HasSubstr("│█████│"));
  EXPECT_THAT(text.out, Not(HasSubstr("\033")));
  const Outcome json = RunWith({"--json", "inspect", path});
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_EQ(parsed["layers"], 2);
  EXPECT_EQ(parsed["kept_counts"].size(), 4u);
}

TEST_F(AppTest, DrawsWhatAResultKept) {
  const SmallCache cache(2);
  const std::vector<int32_t> kept = {0, 7, 0, 1, 2, 3, 6, 7};
  const std::vector<int32_t> counts = {2, 2, 2, 2};
  formats::Safetensors file = cache.File();
  file.tensors["kept_indices"] = {"I32", {2, 2, 2}, SmallCache::Bytes(kept)};
  file.tensors["kept_counts"] = {"I32", {2, 2}, SmallCache::Bytes(counts)};
  file.metadata["source_tokens"] = "8";
  const Outcome outcome = RunWith({"inspect", Write("a", file)});
  EXPECT_EQ(outcome.code, kExitOk) << outcome.err;
  for (const char* row : {"│█      █│", "│██      │", "│  ██    │", "│      ██│"}) {
    EXPECT_THAT(outcome.out, HasSubstr(row));
  }
  const Outcome one = RunWith({"inspect", PathOf("a"), "--layer", "1"});
  EXPECT_THAT(one.out, Not(HasSubstr("│██      │")));
  EXPECT_EQ(RunWith({"inspect", PathOf("a"), "--layer", "2"}).code, kExitUsage);
}

TEST(ErrorText, SaysWhatHappenedAndWhatToDo) {
  const absl::Status status = WithField(
      WithReason(absl::FailedPreconditionError("codec: got lm4, want raw16"), "CODEC_NEEDS_STORE"),
      "policy.codecs");
  const std::string text = ErrorText(status);
  EXPECT_THAT(text, HasSubstr("FAILED_PRECONDITION/CODEC_NEEDS_STORE"));
  EXPECT_THAT(text, HasSubstr("policy.codecs"));
  EXPECT_THAT(text, HasSubstr("next:  use --via store"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
}

TEST(ExitCode, TellsUsageRefusalAndAbsenceApart) {
  EXPECT_EQ(ExitCode(absl::OkStatus()), kExitOk);
  EXPECT_EQ(ExitCode(absl::UnavailableError("no server")), kExitUnreachable);
  EXPECT_EQ(ExitCode(absl::NotFoundError("x")), kExitRefused);
  EXPECT_EQ(ExitCode(UsageError("x")), kExitUsage);
}

}  // namespace
}  // namespace kvern::cli
