// Bad command lines, bad files, absent servers: one line that says what was wrong, one that says
// what to do, the right exit code, and no file left behind.
#include <algorithm>

#include "tests/integration/command_line/command_line.h"
#include "tests/unit/client/small_cache.h"

namespace kvern {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

class CommandLineRefusal : public CommandLineTest {
 protected:
  // What the command said; it must be two lines of stderr alone.
  static std::string Refused(const Words& words, int code) {
    const support::CommandOutput output = Kvern(words, code);
    EXPECT_THAT(output.out, IsEmpty());
    EXPECT_THAT(output.err, AllOf(StartsWith("kvern: "), HasSubstr("\nnext:  ")));
    EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 2) << output.err;
    return output.err;
  }
  // compress, plan, inspect and store put all refuse the file, naming it and `what`.
  void ExpectBadFile(const std::string& file, const std::string& what) {
    const size_t files = FileCount();
    for (const Words& words :
         {Words{"compress", file, "-o", PathOf("out"), "--local"}, Words{"plan", file, "--local"},
          Words{"inspect", file}, Words{"store", "put", file, "--name", "x", "--local"}}) {
      SCOPED_TRACE(::testing::PrintToString(words));
      const std::string error = Refused(words, 1);
      EXPECT_THAT(error, HasSubstr(file));
      EXPECT_THAT(error, HasSubstr(what));
    }
    EXPECT_EQ(FileCount(), files);
  }
};

TEST_F(CommandLineRefusal, CallsBadCommandLinesUsageErrors) {
  for (const Words& words : std::vector<Words>{
           {},
           {"nonsense"},
           {"compress"},
           {"compress", kQwen},
           {"compress", kQwen, "-o"},
           {"compress", kQwen, "-o", "x", "--no-such-flag"},
           {"compress", kQwen, "-o", "x", "--keep-ratio", "0.5", "--budget-tokens", "3"},
           {"compress", kQwen, "-o", "x", "--keep-ratio", "half"},
           {"compress", kQwen, "-o", "x", "--budget-bytes", "many"},
           {"compress", kQwen, "-o", "x", "--codec", "k=i8t,w=i8t"},
           {"compress", kQwen, "-o", "x", "--scorer", "keydiff:unrotate=true,unrotate=false"},
           {"compress", kQwen, "-o", "x", "--blend", "min"},
           {"compress", kQwen, "-o", "x", "--via", "pigeon"},
           {"compress", kQwen, "-o", "x", "--threads", "2", "--server", "unix:/x"},
           {"info", "--local", "--server", "unix:/x"},
           {"info", "--local", "--timeout", "never"},
           {"stages", "nothing", "--local"},
           {"store", "put", kQwen},
           {"store", "nonsense"},
           {"unpack", kQwen},
           {"inspect", kQwen, "--layer", "99"}}) {
    SCOPED_TRACE(::testing::PrintToString(words));
    Refused(words, 2);
  }
}

TEST_F(CommandLineRefusal, ExitsWith3WithoutAServer) {
  const std::string nobody = "unix:" + PathOf("nobody.sock");
  for (const Words& words :
       {Words{"ping"}, Words{"info"}, Words{"stages"}, Words{"models"}, Words{"pools"},
        Words{"store"}, Words{"compress", kQwen, "-o", PathOf("out")}, Words{"plan", kQwen}}) {
    EXPECT_THAT(Refused(words + Words{"--server", nobody}, 3),
                AllOf(HasSubstr("UNAVAILABLE/UNREACHABLE"), HasSubstr("--local")));
  }
  EXPECT_EQ(FileCount(), 0);
}

TEST_F(CommandLineRefusal, RefusesWhatThePolicyOrTheServerDoesNotHave) {
  const auto refused = [this](const Words& how) {
    return Refused(Words{"compress", kQwen, "-o", PathOf("out"), "--local"} + how, 1);
  };
  EXPECT_THAT(refused({"--policy", "gigantic"}),
              HasSubstr("want one of balanced, small, tiny, safe, evict50"));
  EXPECT_THAT(refused({"--keep-ratio", "0.5", "--scorer", "psychic"}), HasSubstr("key_norm"));
  EXPECT_THAT(refused({"--keep-ratio", "0.5", "--scorer", "key_norm:loud=yes"}), HasSubstr("loud"));
  EXPECT_THAT(refused({"--keep-ratio", "7", "--scorer", "key_norm"}), HasSubstr("(0, 1]"));
  EXPECT_THAT(refused({"--keep-ratio", "0.5", "--scorer", "triattention"}),
              AllOf(HasSubstr("INPUT_MISSING"), HasSubstr("--calibration")));
  EXPECT_THAT(refused({"--codec", "lm4"}), HasSubstr("lm4+rm"));
  EXPECT_THAT(refused({"--via", "pool"}), HasSubstr("BROKER_MISSING"));
  EXPECT_THAT(refused({"--calibration", kQwen}), HasSubstr("kvern-calibration/1"));
  EXPECT_THAT(refused({"--calibration", kPrideCalibration}), HasSubstr("[24, 14, 32]"));
  EXPECT_THAT(refused({"--calibration", PathOf("none")}), HasSubstr("NOT_FOUND/FILE_ACCESS"));
  EXPECT_EQ(FileCount(), 0);
}

TEST_F(CommandLineRefusal, LeavesAnOlderResultAsItWas) {
  Write("out", std::string("older"));
  Refused({"compress", kQwen, "-o", PathOf("out"), "--local", "--policy", "gigantic"}, 1);
  EXPECT_EQ(Read("out"), "older");
  Refused({"compress", kQwen, "-o", PathOf("no/such/folder"), "--local"}, 1);
  EXPECT_EQ(FileCount(), 1);
  // The input may be the output: the new file takes the old one's name when it is complete.
  std::filesystem::copy_file(kQwen, PathOf("cache"));
  Kvern({"compress", PathOf("cache"), "-o", PathOf("cache"), "--local", "--policy", "evict50"});
  EXPECT_EQ(TensorFile(PathOf("cache")).At("k").shape[2], 256);
  EXPECT_EQ(FileCount(), 2);
}

TEST_F(CommandLineRefusal, RefusesFilesThatAreNone) {
  ExpectBadFile(PathOf("absent"), "No such file");
  ExpectBadFile(Write("empty", std::string()), "not empty");
  ExpectBadFile(Write("noise", std::string(4096, 'x')), "header size");
  ExpectBadFile(Write("short", std::string(5, '\0')), "safetensors");
  std::filesystem::create_directory(PathOf("folder"));
  ExpectBadFile(PathOf("folder"), "want a regular file");
}

TEST_F(CommandLineRefusal, RefusesTruncatedFiles) {
  const SmallCache cache(40);
  const std::string whole = formats::WriteSafetensors(cache.File());
  for (const size_t size :
       {size_t{7}, size_t{8}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    ExpectBadFile(Write("cut", whole.substr(0, size)), "safetensors");
  }
  ExpectBadFile(Write("longer", whole + "x"), "safetensors");
}

TEST_F(CommandLineRefusal, RefusesTensorsThatDoNotFit) {
  const SmallCache cache(40);
  const formats::Safetensors good = cache.File();
  const std::vector<int32_t> numbers(40, 3);
  const auto with = [&](const std::string& name, const formats::TensorEntry& tensor) {
    formats::Safetensors file = good;
    file.tensors[name] = tensor;
    return Write("bad", file);
  };
  formats::Safetensors file = good;
  file.tensors.erase("v");
  ExpectBadFile(Write("no-v", file), "tensors 'k' and 'v'");
  ExpectBadFile(with("v", {"F32", {2, 2, 20, 16}, good.Find("v")->bytes}), "tensor 'v'");
  ExpectBadFile(with("k", {"I32", {2, 2, 40, 8}, good.Find("k")->bytes}), "tensor 'k'");
  ExpectBadFile(with("k", {"F32", {4, 40, 8}, good.Find("k")->bytes}), "tensor 'k'");
  ExpectBadFile(with("positions", {"I32", {20, 2}, SmallCache::Bytes(numbers)}), "'positions'");
  ExpectBadFile(with("positions", {"F32", {40}, SmallCache::Bytes(numbers)}), "'positions'");
  ExpectBadFile(with("attention_mass", {"F32", {40}, SmallCache::Bytes(numbers)}),
                "'attention_mass'");
  ExpectBadFile(with("layer_indices", {"I32", {40}, SmallCache::Bytes(numbers)}),
                "'layer_indices'");
  file = good;
  file.metadata["format"] = "kvern-cache/99";
  ExpectBadFile(Write("version", file), "kvern-cache/99");
  file = good;
  file.metadata["logical_tokens"] = "lots";
  ExpectBadFile(Write("number", file), "logical_tokens");
}

TEST_F(CommandLineRefusal, RefusesWhatOnlyTheServerCanTell) {
  const SmallCache cache(40);
  const auto refused = [&](const formats::Safetensors& file) {
    const std::string input = Write("bad", file);
    return Refused({"compress", input, "-o", PathOf("out"), "--local", "--keep-ratio", "0.5",
                    "--scorer", "key_norm"},
                   1);
  };
  formats::Safetensors file = cache.File();
  const std::vector<int32_t> falling = [] {
    std::vector<int32_t> values;
    for (int i = 40; i > 0; --i) values.push_back(i);
    return values;
  }();
  file.tensors["positions"] = {"I32", {40}, SmallCache::Bytes(falling)};
  EXPECT_THAT(refused(file), HasSubstr("positions"));
  file = cache.File();
  file.metadata["q_heads"] = "3";
  EXPECT_THAT(refused(file), HasSubstr("q_heads"));
  file = cache.File();
  file.metadata["kv_heads"] = "5";
  EXPECT_THAT(refused(file), HasSubstr("kv_heads"));
  file = cache.File();
  file.metadata["rope_scaling"] = "{\"rope_type\": \"spiral\"}";
  EXPECT_THAT(refused(file), HasSubstr("spiral"));
  EXPECT_EQ(FileCount(), 1);
}

TEST_F(CommandLineRefusal, RefusesDamagedPackedFiles) {
  Compress(kQwen, "packed", {"--local"});
  const TensorFile whole(PathOf("packed"));
  formats::Safetensors file = whole.Contents();
  file.tensors.erase("packed_table");
  const auto refused = [this](const formats::Safetensors& contents) {
    return Refused({"unpack", Write("bad", contents), "-o", PathOf("out")}, 1);
  };
  EXPECT_THAT(refused(file), HasSubstr("packed_table"));
  file = whole.Contents();
  std::vector<int64_t> table = whole.Values<int64_t>("packed_table");
  table[7] = int64_t{1} << 60;
  file.tensors["packed_table"].bytes = std::as_bytes(std::span(table));
  EXPECT_THAT(refused(file), HasSubstr("packed"));
  file = whole.Contents();
  file.tensors["packed"].bytes = file.tensors["packed"].bytes.first(64);
  file.tensors["packed"].shape = {64};
  EXPECT_THAT(refused(file), HasSubstr("packed"));
  EXPECT_THAT(Refused({"unpack", kQwen, "-o", PathOf("out")}, 1), HasSubstr("k and v already"));
  EXPECT_THAT(Refused({"compress", PathOf("packed"), "-o", PathOf("out"), "--local"}, 1),
              HasSubstr("kvern unpack"));
  EXPECT_EQ(FileCount(), 2);
}

}  // namespace
}  // namespace kvern
