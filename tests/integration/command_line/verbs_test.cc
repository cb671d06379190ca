// What every verb prints for people and for programs.
#include <sstream>

#include "client/cli/text_table.h"
#include "tests/integration/command_line/command_line.h"

namespace kvern {
namespace {

using ::testing::Contains;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class CommandLineVerbs : public CommandLineTest {
 protected:
  // With a terminal of `columns`.
  static std::string WithColumns(int columns, const Words& words) {
    const auto output = support::RunCommand(
        Words{"/usr/bin/env", "COLUMNS=" + std::to_string(columns), support::BinaryPath("kvern")} +
        words);
    EXPECT_EQ(output.exit_code, 0) << output.err;
    return output.out;
  }
};

Words LinesOf(const std::string& text) {
  Words lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

size_t LinesWith(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (const std::string& line : LinesOf(text)) count += line.find(part) != std::string::npos;
  return count;
}

TEST_F(CommandLineVerbs, HelpOfEachEndsInExamples) {
  const Words verbs[] = {{},         {"compress"}, {"plan"},  {"inspect"}, {"unpack"}, {"stages"},
                         {"models"}, {"pools"},    {"store"}, {"info"},    {"ping"},   {"bench"}};
  for (const Words& verb : verbs) {
    const std::string help = Kvern(verb + Words{"--help"}).out;
    const std::string name = verb.empty() ? "compress" : verb[0];
    EXPECT_THAT(help, HasSubstr("Examples:\n  kvern " + name)) << name;
    EXPECT_THAT(help, Not(HasSubstr("Excludes"))) << name;
  }
  for (const Words& verb : {Words{"models", "register"}, Words{"models", "import"},
                            Words{"models", "delete"}, Words{"store", "put"}, Words{"store", "get"},
                            Words{"store", "delete"}, Words{"store", "list"}}) {
    EXPECT_THAT(Kvern(verb + Words{"--help"}).out,
                HasSubstr("kvern " + verb[0] + " " + verb[1] + " "));
  }
}

TEST_F(CommandLineVerbs, HelpNamesOnlyPresetsThatAreServed) {
  Words served;
  const nlohmann::json stages = KvernJson({"stages", "--local"});
  for (const auto& preset : stages["presets"]) served.push_back(preset["name"]);
  for (const char* verb : {"compress", "plan"}) {
    std::istringstream words(Kvern({verb, "--help"}).out);
    for (std::string word, last; words >> word; last = word) {
      if (last == "--policy" && word != "NAME") {
        EXPECT_THAT(served, Contains(word)) << verb;
      }
    }
  }
}

TEST_F(CommandLineVerbs, EachPrintsJsonThatParses) {
  Compress(kQwen, "packed", {"--local"});
  const Words put = {"store", "put", kQwen, "--name", "json"};
  EXPECT_EQ(KvernJson(Words{"plan", kQwen} + AtServer())["outcome"], "OUTCOME_APPLIED");
  EXPECT_EQ(KvernJson({"inspect", PathOf("packed")})["axis_tokens"], 512);
  EXPECT_GT(KvernJson({"unpack", PathOf("packed"), "-o", PathOf("dense")})["dense_bytes"], 0);
  EXPECT_FALSE(KvernJson(Words{"stages"} + AtServer())["stages"].empty());
  EXPECT_EQ(KvernJson(Words{"ping"} + AtServer())["serving"], true);
  EXPECT_EQ(KvernJson(Words{"info"} + AtServer())["limits"]["inline-bytes"], 16 << 20);
  EXPECT_TRUE(KvernJson(Words{"pools", "list"} + AtServer())["pools"].empty());
  EXPECT_EQ(KvernJson(put + AtServer())["num_tokens"], 512);
  EXPECT_EQ(KvernJson(Words{"store", "list"} + AtServer())["sequences"].size(), 1);
  const Words get = {"store", "get", "json", "-o", PathOf("got")};
  EXPECT_TRUE(KvernJson(get + AtServer()).is_object());
  EXPECT_EQ(KvernJson(Words{"store", "delete", "json"} + AtServer())["deleted"], "sequences/json");
  const Words enroll = {"models", "register", kQwen, "--name", "json"};
  EXPECT_EQ(KvernJson(enroll + AtServer())["name"], "models/json");
  const Words import = {"models", "import", kQwenMoments, kQwenCalibration};
  EXPECT_EQ(KvernJson(import + AtServer())["calibrations"].size(), 2);
  EXPECT_FALSE(KvernJson(Words{"models", "list"} + AtServer())["models"].empty());
  EXPECT_EQ(KvernJson(Words{"models", "delete", "json"} + AtServer())["deleted"], "models/json");
}

TEST_F(CommandLineVerbs, TakesServerFlagsBeforeAndAfterTheVerb) {
  const std::string address = Server().Address();
  for (const Words& words :
       {Words{"--server", address, "--json", "info"}, Words{"info", "--server", address, "--json"},
        Words{"--json", "info", "--server", address}, Words{"--local", "info", "--json"},
        Words{"--json", "stages", "--local"}, Words{"store", "list", "--json", "--local"},
        Words{"--local", "--json", "store"}}) {
    EXPECT_TRUE(nlohmann::json::accept(Kvern(words).out)) << ::testing::PrintToString(words);
  }
  // The environment names a server too.
  const auto output = support::RunCommand(
      {"/usr/bin/env", "KVERN_SERVER=" + address, support::BinaryPath("kvern"), "ping"});
  EXPECT_EQ(output.exit_code, 0) << output.err;
  EXPECT_THAT(output.out, HasSubstr(address));
}

TEST_F(CommandLineVerbs, PlanPrintsBudgetsAndWritesNothing) {
  const Words policy = {"--calibration", kPrideCalibration};
  const std::string plan = Kvern(Words{"plan", kPride} + policy + AtServer()).out;
  for (const char* part : {"chain", "balanced | sensitivity", "kept", "bytes", "6.0 MiB ->",
                           "layer", "heads", "\n   29  "}) {
    EXPECT_THAT(plan, HasSubstr(part));
  }
  EXPECT_EQ(FileCount(), 0);
  const nlohmann::json said = KvernJson(Words{"plan", kPride, "--local"} + policy);
  const Result done = Compress(kPride, "out", policy + Words{"--local"});
  EXPECT_EQ(said["kept_counts"], done.said["kept_counts"]);
  EXPECT_EQ(said["bytes_after"], done.said["bytes_after"]);
  EXPECT_EQ(said["resolved"], done.said["resolved"]);
}

TEST_F(CommandLineVerbs, InspectDrawsOneRowPerHeadOnNarrowAndWideScreens) {
  Compress(kPride, "packed", {"--local", "--calibration", kPrideCalibration});
  Compress(kPride, "dense", {"--local", "--policy", "evict50"});
  for (const int columns : {40, 100, 200}) {
    for (const std::string& file : {PathOf("packed"), PathOf("dense"), std::string(kPride)}) {
      SCOPED_TRACE(file + " at " + std::to_string(columns));
      const std::string text = WithColumns(columns, {"inspect", file});
      EXPECT_EQ(LinesWith(text, "│"), 8 * 3);
      EXPECT_THAT(text, HasSubstr("\nlayer  "));
      for (const std::string& line : LinesOf(text)) {
        if (line.rfind("file", 0) == 0) continue;  // a path has no place to break
        EXPECT_LE(cli::DisplayWidth(line), static_cast<size_t>(columns)) << line;
      }
    }
  }
  // Layers have the model's numbers.
  const std::string one = WithColumns(100, {"inspect", PathOf("packed"), "--layer", "29"});
  EXPECT_EQ(LinesWith(one, "│"), 3);
  Kvern({"inspect", PathOf("packed"), "--layer", "1"}, 2);
}

TEST_F(CommandLineVerbs, StagesPrintsEveryRegisteredName) {
  const nlohmann::json all = KvernJson({"stages", "--local"});
  const std::string text = Kvern({"stages", "--local"}).out;
  const std::string markdown = Kvern({"stages", "--local", "--markdown"}).out;
  ASSERT_GT(all["stages"].size(), 15);
  for (const auto& stage : all["stages"]) {
    const std::string name = stage["name"];
    EXPECT_THAT(text, HasSubstr("\n" + name + "\n"));
    EXPECT_THAT(markdown, HasSubstr("| `" + name + "` |"));
    EXPECT_THAT(Kvern({"stages", name, "--local"}).out, HasSubstr("\n" + name + "\n"));
    for (const auto& param : stage["params"]) {
      EXPECT_THAT(text, HasSubstr("  " + param["name"].get<std::string>() + "="));
    }
  }
  for (const auto& preset : all["presets"]) {
    EXPECT_THAT(text, HasSubstr("\n" + preset["name"].get<std::string>() + "\n"));
  }
  for (const char* known : {"uniform",      "sensitivity", "pyramid",
                            "triattention", "snapkv",      "expected_attention",
                            "keydiff",      "key_norm",    "attention_mass",
                            "value_norm",   "external",    "random",
                            "topk",         "diverse",     "sink_recent",
                            "raw16",        "i8t",         "fp8t",
                            "kch4",         "i4t",         "lm4",
                            "sfv3",         "sfv2"}) {
    EXPECT_THAT(text, HasSubstr(std::string("\n") + known + "\n"));
  }
  // Every Markdown row of a table has the cells of its heading.
  size_t cells = 0;
  for (std::string line : LinesOf(markdown)) {
    for (size_t at; (at = line.find("\\|")) != std::string::npos;) line.erase(at, 2);
    const size_t bars = std::count(line.begin(), line.end(), '|');
    if (cells > 0 && bars > 0) {
      EXPECT_EQ(bars, cells) << line;
    }
    cells = bars;
  }
}

TEST_F(CommandLineVerbs, ModelsRegistersImportsListsAndForgets) {
  const Words at = AtServer();
  EXPECT_EQ(Kvern(Words{"models", "register", kPride, "--name", "smollm2", "--calibration",
                        kPrideMoments} +
                  at)
                .out,
            "models/smollm2\n");
  EXPECT_THAT(Kvern(Words{"models", "import", kPrideCalibration} + at).out,
              StartsWith("calibrations/"));
  const std::string list = Kvern(Words{"models"} + at).out;
  for (const char* part : {"models/smollm2", "SmolLM2-135M", "kvern-query-moments/1",
                           "kvern-calibration/1 + layer_sensitivity"}) {
    EXPECT_THAT(list, HasSubstr(part));
  }
  const auto other = Kvern(Words{"models", "register", kQwen, "--name", "smollm2"} + at, 1);
  EXPECT_THAT(other.err, HasSubstr("ALREADY_EXISTS"));
  EXPECT_EQ(Kvern(Words{"models", "delete", "smollm2"} + at).out, "deleted models/smollm2\n");
  EXPECT_THAT(Kvern(Words{"models"} + at).out, Not(HasSubstr("models/smollm2")));
}

TEST_F(CommandLineVerbs, StorePutsListsGetsAndDeletes) {
  const Words at = AtServer();
  EXPECT_THAT(Kvern(Words{"store", "put", kQwen, "--name", "chat"} + at).out,
              HasSubstr("sequences/chat: 512 tokens, 2.0 MiB"));
  EXPECT_THAT(Kvern(Words{"store"} + at).out, HasSubstr("sequences/chat"));
  const auto twice = Kvern(Words{"store", "put", kQwen, "--name", "chat"} + at, 1);
  EXPECT_THAT(twice.err, HasSubstr("next:  choose another name, or delete the old one first"));
  Kvern(Words{"store", "get", "sequences/chat", "-o", PathOf("chat"), "--decode"} + at);
  EXPECT_TRUE(TensorFile(kQwen).Bytes("k") == TensorFile(PathOf("chat")).Bytes("k"));
  // What was fetched is a cache file again.
  Compress(PathOf("chat"), "small", Words{"--policy", "evict50"} + at);
  Kvern(Words{"store", "delete", "chat"} + at);
  EXPECT_THAT(Kvern(Words{"store"} + at).out, StartsWith("0 B of "));
  const auto gone = Kvern(Words{"store", "get", "chat", "-o", PathOf("x")} + at, 1);
  EXPECT_THAT(gone.err, HasSubstr("NOT_FOUND/SEQUENCE_UNKNOWN"));
}

TEST_F(CommandLineVerbs, InfoAndPingTellAboutTheServer) {
  const std::string info = Kvern(Words{"info"} + AtServer()).out;
  for (const char* part :
       {"server", "version", "v0.", "backend", "threads", "broker", "inline-bytes", "16.0 MiB"}) {
    EXPECT_THAT(info, HasSubstr(part));
  }
  EXPECT_THAT(Kvern(Words{"ping"} + AtServer()).out, StartsWith("serving: unix:"));
  EXPECT_THAT(Kvern({"--version"}).out, StartsWith("kvern 0."));
}

TEST_F(CommandLineVerbs, CompressSaysWhatItDidAndWhatToDoNext) {
  const std::string text = Kvern(Words{"compress", kPride, "-o", PathOf("out")} + AtServer()).out;
  for (const char* part :
       {"cache    8 layers, 3 kv_heads, 1024 tokens, head_dim 64, bf16", "chain    balanced",
        "because  balanced needs layer_sensitivity", "kept", "bytes    6.0 MiB -> 1.5 MiB (25 %)",
        "quality", "of attention kept", "time", "sent     through shared memory", "kvern inspect ",
        "kvern unpack "}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, Not(HasSubstr("\033")));  // colours are for terminals
}

}  // namespace
}  // namespace kvern
