// kvern bench: every op runs at a small size and says what it cost, in numbers programs can read.
#include "tests/integration/command_line/command_line.h"

namespace kvern {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const Words kTiny = {"--tokens", "80",         "--kv-heads", "2",        "--q-heads",
                     "4",        "--head-dim", "32",         "--rounds", "3"};

class CommandLineBench : public CommandLineTest {
 protected:
  static Words OpNames() {
    Words names;
    const nlohmann::json list = KvernJson({"bench", "--op", "list"});
    for (const auto& op : list["ops"]) names.push_back(op["op"]);
    return names;
  }
};

void ExpectQuantiles(const nlohmann::json& quantiles) {
  EXPECT_GT(quantiles["p10"], 0.0);
  EXPECT_LE(quantiles["p10"], quantiles["median"]);
  EXPECT_LE(quantiles["median"], quantiles["p90"]);
}

TEST_F(CommandLineBench, MeasuresEveryOpThatItLists) {
  const Words names = OpNames();
  EXPECT_GE(names.size(), 14u);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    nlohmann::json json = KvernJson(Words{"bench", "--op", name} + kTiny);
    ASSERT_THAT(json["ops"], SizeIs(1));
    nlohmann::json& op = json["ops"][0];
    EXPECT_EQ(op["op"], name);
    EXPECT_EQ(op["rounds"], 3);
    for (const char* field : {"stream_reads", "stream_reads_cpu", "ms"}) ExpectQuantiles(op[field]);
    for (const char* field : {"floor_bytes", "gb_per_s", "share_of_floor", "tokens_per_s"}) {
      EXPECT_GT(op[field], 0) << field;
    }
    EXPECT_EQ(json["stream_read"]["bytes"], 2 * 80 * 32 * 2);
    ExpectQuantiles(json["stream_read"]["ms"]);
    EXPECT_EQ(json["shape"]["q_heads"], 4);
    EXPECT_EQ(json["threads"], 1);
  }
}

TEST_F(CommandLineBench, MeasuresAllAsOneTable) {
  const std::string table =
      Kvern(Words{"bench", "--op", "all", "--threads", "2", "--dtype", "f32"} + kTiny).out;
  const Words names = OpNames();
  EXPECT_GE(names.size(), 14u);
  for (const std::string& name : names) EXPECT_THAT(table, HasSubstr("\n" + name + " "));
  EXPECT_THAT(table, AllOf(HasSubstr("stream reads"), HasSubstr("2 threads"), HasSubstr("f32"),
                           HasSubstr("of floor")));
}

TEST_F(CommandLineBench, RunsOnTheInstructionSetAndBackendAskedFor) {
  const Words one = Words{"bench", "--op", "score:key_norm"} + kTiny;
  EXPECT_EQ(KvernJson(one + Words{"--backend", "ref"})["backend"], "ref");
#if defined(__x86_64__)
  const nlohmann::json avx2 = KvernJson(one + Words{"--instruction-set", "avx2"});
  EXPECT_EQ(avx2["instruction_set"], "avx2");
  EXPECT_EQ(avx2["backend"], "cpu");
#endif
}

TEST_F(CommandLineBench, SaysWhatItGotAndWhatItWants) {
  struct Case {
    Words flags;
    const char* got;
    const char* want;
  };
  for (const Case& wrong : std::vector<Case>{
           {{}, "--op", "required"},
           {{"--op", "score:nope"}, "got 'score:nope'", "want list, all, score:triattention"},
           {{"--op", "all", "--tokens", "63"}, "got 63", "want 64 to"},
           {{"--op", "all", "--kv-heads", "0"}, "got 0", "want 1 to"},
           {{"--op", "all", "--kv-heads", "3"}, "got 8", "want a multiple of the kv_heads, 3"},
           {{"--op", "all", "--head-dim", "40"}, "got 40", "want a multiple of 16"},
           {{"--op", "all", "--rounds", "0"}, "got 0", "want 1 to"},
           {{"--op", "all", "--dtype", "int4"}, "got 'int4'", "want bf16, f16 or f32"},
           {{"--op", "all", "--threads", "-1"}, "got -1", "want 0 to"},
           {{"--op", "all", "--backend", "cuda"}, "got cuda", "want cpu or ref"},
           {{"--op", "all", "--server", "unix:/x"}, "--server", "want none"},
           {{"--op", "all", "--tokens", "16777216", "--kv-heads", "64", "--q-heads", "64"},
            "got keys of 256.0 GiB",
            "want at most 4.0 GiB"}}) {
    const std::string error = Kvern(Words{"bench"} + wrong.flags, /*code=*/2).err;
    EXPECT_THAT(error, AllOf(HasSubstr(wrong.got), HasSubstr(wrong.want), HasSubstr("next:")));
  }
}

}  // namespace
}  // namespace kvern
