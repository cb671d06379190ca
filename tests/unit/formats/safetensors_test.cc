// What is written reads back; no lie about sizes gets through.
#include "formats/safetensors.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

#include "gmock/gmock.h"

namespace kvern::formats {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::span<const std::byte> BytesOf(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
std::string FileOf(const std::string& json, const std::string& data) {
  std::string file(8, '\0');
  for (int i = 0; i < 8; ++i) file[i] = static_cast<char>(uint64_t{json.size()} >> (8 * i));
  return file + json + data;
}
void ExpectRefused(const std::string& file, const std::string& text) {
  const auto parsed = ParseSafetensors(BytesOf(file));
  ASSERT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << file;
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(text));
}
std::string ReadTestFile(const std::string& name) {
  std::ifstream file(std::string(KVERN_TEST_DATA) + "/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

constexpr char kTwo[] =
    R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},)"
    R"("b":{"shape":[4],"data_offsets":[0,4],"dtype":"U8"},"__metadata__":{"m":"n"}})";

TEST(Safetensors, ReadsTensorsInAnyOrder) {
  const std::string file = FileOf(kTwo, "0123456789AB");
  const auto parsed = ParseSafetensors(BytesOf(file));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_NE(parsed->Find("a"), nullptr);
  EXPECT_THAT(parsed->Find("a")->shape, ElementsAre(2));
  EXPECT_EQ(parsed->Find("a")->bytes.data(), BytesOf(file).data() + file.size() - 8);
  EXPECT_EQ(parsed->Find("b")->bytes.size(), 4u);
  EXPECT_EQ(parsed->Find("c"), nullptr);
  EXPECT_EQ(parsed->Metadata("m"), "n");
  EXPECT_EQ(parsed->Metadata("x"), "");
}

TEST(Safetensors, ReadsScalarsEmptyTensorsAndEmptyFiles) {
  EXPECT_TRUE(ParseSafetensors(BytesOf(FileOf("{}      ", ""))).ok());
  const auto parsed =
      ParseSafetensors(BytesOf(FileOf(R"({"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                                      R"("e":{"dtype":"F16","shape":[3,0],"data_offsets":[8,8]}})",
                                      "01234567")));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->Find("s")->bytes.size(), 8u);
  EXPECT_TRUE(parsed->Find("e")->bytes.empty());
}

TEST(Safetensors, WritesWhatItReads) {
  const float values[] = {1.5f, -2.0f};
  const uint16_t halves[] = {0x3C00, 0x7C00, 0x0001};
  Safetensors contents;
  contents.metadata = {{"quote", "a\"b\n"}, {"kvern", "1"}};
  contents.tensors["w"] = {"F32", {2, 1}, std::as_bytes(std::span(values))};
  contents.tensors["layer.0 \"k\""] = {"F16", {3}, std::as_bytes(std::span(halves))};
  const std::string file = WriteSafetensors(contents);
  EXPECT_EQ(SafetensorsHeader(contents).size() % 8, 0u);
  const auto parsed = ParseSafetensors(BytesOf(file));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->metadata, contents.metadata);
  ASSERT_EQ(parsed->tensors.size(), 2u);
  EXPECT_THAT(*ToFloats("w", *parsed->Find("w")), ElementsAre(1.5f, -2.0f));
  EXPECT_EQ(parsed->Find("layer.0 \"k\"")->shape, std::vector<int64_t>{3});
  EXPECT_EQ(WriteSafetensors(*parsed), file);
}

TEST(Safetensors, WritesNamesThatAreNoText) {
  Safetensors contents;
  contents.tensors["\xff"] = {"U8", {0}, {}};
  EXPECT_TRUE(ParseSafetensors(BytesOf(WriteSafetensors(contents))).ok());
}

TEST(Safetensors, WidensHalvesExactly) {
  const uint16_t f16[] = {0x3C00, 0xC000, 0x0001};
  const uint16_t bf16[] = {0x3F80, 0xC000};
  EXPECT_THAT(*ToFloats("h", {"F16", {3}, std::as_bytes(std::span(f16))}),
              ElementsAre(1.0f, -2.0f, std::ldexp(1.0f, -24)));
  EXPECT_THAT(*ToFloats("b", {"BF16", {2}, std::as_bytes(std::span(bf16))}),
              ElementsAre(1.0f, -2.0f));
  EXPECT_FALSE(ToFloats("i", {"I32", {0}, {}}).ok());
}

TEST(Safetensors, KnowsTheSizesOfItsTypes) {
  EXPECT_EQ(ElementBytes("BOOL"), 1);
  EXPECT_EQ(ElementBytes("U16"), 2);
  EXPECT_EQ(ElementBytes("U32"), 4);
  EXPECT_EQ(ElementBytes("F64"), 8);
  EXPECT_EQ(ElementBytes("f32"), 0);
  EXPECT_EQ(ElementBytes(""), 0);
}

TEST(Safetensors, RejectsHeaderSizesThatLie) {
  ExpectRefused("", "got 0 bytes");
  ExpectRefused("1234567", "got 7 bytes");
  for (const uint64_t size :
       {uint64_t{11}, uint64_t{100'000'001}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    std::string file = FileOf("{}", "12345678");
    std::memcpy(file.data(), &size, 8);
    ExpectRefused(file, "header size");
  }
}

TEST(Safetensors, RejectsTextThatIsNoHeader) {
  for (const std::string& json : {
           std::string(""),
           std::string(" {}"),
           std::string("[]"),
           std::string("{"),
           std::string("{}x"),
           std::string("{}\0", 3),
           std::string("\xEF\xBB\xBF{}"),
           std::string(R"({"a":1})"),
           std::string(R"({"a":null})"),
           std::string(R"({"a":[]})"),
           std::string(R"({"a":{}})"),
           std::string(R"({"a":{"dtype":"U8"}})"),
           std::string(R"({"__metadata__":{"a":1}})"),
           std::string(R"({"__metadata__":[]})"),
           std::string(R"({"__metadata__":{"a":{}}})"),
           std::string(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})"),
           std::string(R"({"a":{"dtype":1,"shape":[0],"data_offsets":[0,0]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":0,"data_offsets":[0,0]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":[[0]],"data_offsets":[0,0]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":["0"],"data_offsets":[0,0]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}})"),
           std::string(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}})"),
           std::string(
               R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})"),
           std::string(
               R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0]}})"),
           std::string("{\"a\xff\":{}}"),
       }) {
    ExpectRefused(FileOf(json, ""), "safetensors: header");
  }
}

TEST(Safetensors, RejectsNamesGivenTwice) {
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                       R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                       ""),
                "'a' twice");
  ExpectRefused(FileOf(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", ""),
                "'dtype' twice");
  ExpectRefused(FileOf(R"({"__metadata__":{"x":"1","x":"2"}})", ""), "'x' twice");
  ExpectRefused(FileOf(R"({"__metadata__":{},"__metadata__":{}})", ""), "twice");
}

TEST(Safetensors, RejectsDeepNestingWithoutRecursing) {
  ExpectRefused(FileOf("{\"a\":" + std::string(1 << 20, '['), ""), "array out of place");
  std::string objects;
  for (int i = 0; i < 1 << 16; ++i) objects += "{\"a\":";
  ExpectRefused(FileOf(objects, ""), "safetensors: header");
}

TEST(Safetensors, RejectsShapesThatDoNotMatchTheirBytes) {
  const auto file = [](const std::string& dtype, const std::string& shape,
                       const std::string& offsets) {
    return FileOf(R"({"a":{"dtype":")" + dtype + R"(","shape":[)" + shape +
                      R"(],"data_offsets":[)" + offsets + "]}}",
                  "12345678");
  };
  ASSERT_TRUE(ParseSafetensors(BytesOf(file("F32", "2", "0,8"))).ok());
  ExpectRefused(file("F31", "2", "0,8"), "dtype of 'a'");
  ExpectRefused(file("F32", "3", "0,8"), "want 12 bytes");
  ExpectRefused(file("F32", "2", "0,9"), "inside 8 bytes");
  ExpectRefused(file("F32", "2", "8,0"), "inside 8 bytes");
  ExpectRefused(file("F32", "2", "9223372036854775800,9223372036854775807"), "inside 8 bytes");
  ExpectRefused(file("F32", "4611686018427387904,4", "0,8"), "less than 2^63");
  ExpectRefused(file("F32", "4294967296,4294967296,0", "0,8"), "less than 2^63");
  ExpectRefused(
      file("U8", "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,8", "0,8"),
      "more than 32 axes");
}

TEST(Safetensors, RejectsOverlapsGapsAndRests) {
  const auto file = [](const std::string& first, const std::string& second) {
    return FileOf(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[)" + first +
                      R"(]},"b":{"dtype":"U8","shape":[4],"data_offsets":[)" + second + "]}}",
                  "123456789");
  };
  ExpectRefused(file("0,4", "3,7"), "overlap");
  ExpectRefused(file("0,4", "5,9"), "gap");
  ExpectRefused(file("1,5", "5,9"), "gap");
  ExpectRefused(file("0,4", "4,8"), "9 bytes of data, want 8");
}

TEST(Safetensors, ReadsAPublishedCache) {
  const std::string file = ReadTestFile("pride-1024.safetensors");
  ASSERT_FALSE(file.empty());
  const auto parsed = ParseSafetensors(BytesOf(file));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_NE(parsed->Find("k"), nullptr);
  EXPECT_EQ(parsed->Find("k")->shape.size(), 4u);
}

TEST(Safetensors, SurvivesTruncationAndFlippedBytesAnywhere) {
  const std::string file = FileOf(kTwo, "0123456789AB");
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(ParseSafetensors(BytesOf(file.substr(0, size))).ok()) << size;
  }
  std::mt19937 random(23);
  for (int trial = 0; trial < 20000; ++trial) {
    std::string broken = file;
    for (int i = 0; i < 3; ++i) broken[random() % broken.size()] = static_cast<char>(random());
    const auto parsed = ParseSafetensors(BytesOf(broken));
    if (!parsed.ok()) continue;
    size_t bytes = 0;
    for (const auto& [name, tensor] : parsed->tensors) bytes += tensor.bytes.size();
    EXPECT_EQ(bytes, 12u);
  }
}

}  // namespace
}  // namespace kvern::formats
