// Chunks into paged memory: any cut of the bytes gives the same result, and no gap passes.
#include "server/rpc/dense_upload.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "tests/unit/server/rpc/bad_field.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kLayers = 2, kHeads = 3, kTokens = 7, kDim = 8, kBlockTokens = 4;
constexpr int64_t kRowBytes = kDim * 2;
constexpr int64_t kBytes = kLayers * kHeads * kTokens * kRowBytes;

// Two layers in blocks of 4 tokens, block ids scattered over one buffer.
class Pages {
 public:
  std::vector<KvRef> Views() {
    std::vector<KvRef> views;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      KvRef ref;
      ref.dtype = DType::kF16;
      ref.kv_heads = kHeads;
      ref.head_dim = kDim;
      ref.tokens = kTokens;
      ref.block_tokens = kBlockTokens;
      ref.base = bytes_.data();
      ref.strides = {kHeads * kBlockTokens * kRowBytes, kBlockTokens * kRowBytes, kRowBytes, 2};
      ref.block_ids = ids_ + layer * 2;
      ref.lengths = lengths.empty() ? nullptr : lengths.data() + layer * kHeads;
      views.push_back(ref);
    }
    return views;
  }
  std::vector<int32_t> lengths;

 private:
  const uint32_t ids_[4] = {3, 0, 2, 1};
  std::vector<std::byte> bytes_ =
      std::vector<std::byte>(4 * kHeads * kBlockTokens * kRowBytes, std::byte{0xEE});
};

// Memory that the host follows itself.
class HostAccess final : public memory::ByteAccess {
 public:
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* at) const override {
    std::memcpy(at, host.data(), host.size());
    return absl::OkStatus();
  }
  absl::Status CopyOut(const std::byte* at, std::span<std::byte> host) const override {
    std::memcpy(host.data(), at, host.size());
    return absl::OkStatus();
  }
};
const HostAccess kHost;

std::string RandomBytes(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

struct Chunk {
  v1::Chunk::Part part = v1::Chunk::PART_UNSPECIFIED;
  int64_t offset = 0;
  std::string data;
};

// In pieces of at most 50 bytes, as they come out of buffers.
absl::Status Add(DenseUpload& upload, const Chunk& chunk) {
  ChunkBytes bytes;
  bytes.part = chunk.part;
  bytes.offset = chunk.offset;
  std::span<const std::byte> rest = std::as_bytes(std::span(chunk.data));
  while (!rest.empty()) {
    bytes.pieces.push_back(rest.first(std::min<size_t>(50, rest.size())));
    rest = rest.subspan(bytes.pieces.back().size());
  }
  return upload.Add(bytes);
}

std::string ReadAll(const DenseBytes& dense) {
  std::string bytes(dense.Size(), '\x55');
  EXPECT_TRUE(dense.Read(0, std::as_writable_bytes(std::span(bytes.data(), bytes.size()))).ok());
  return bytes;
}

TEST(DenseUpload, PutsChunksOfAnySizeInTheirPlaces) {
  std::mt19937 random(11);
  for (int round = 0; round < 50; ++round) {
    Pages k_pages, v_pages;
    DenseUpload upload(DenseBytes(k_pages.Views(), kHost), DenseBytes(v_pages.Views(), kHost));
    const std::string k = RandomBytes(kBytes, 1), v = RandomBytes(kBytes, 2);
    int64_t k_sent = 0, v_sent = 0;
    while (k_sent < kBytes || v_sent < kBytes) {
      const bool keys = v_sent == kBytes || (k_sent < kBytes && random() % 2 == 0);
      int64_t& sent = keys ? k_sent : v_sent;
      const std::string data = (keys ? k : v).substr(sent, 1 + random() % 97);
      const auto part = keys ? v1::Chunk::PART_K : v1::Chunk::PART_V;
      ASSERT_TRUE(Add(upload, Chunk{part, sent, data}).ok());
      sent += static_cast<int64_t>(data.size());
    }
    ASSERT_TRUE(upload.CheckComplete().ok());
    ASSERT_EQ(ReadAll(DenseBytes(k_pages.Views(), kHost)), k);
    ASSERT_EQ(ReadAll(DenseBytes(v_pages.Views(), kHost)), v);
  }
}

TEST(DenseUpload, RefusesGapsOverrunsAndUnknownParts) {
  Pages k_pages, v_pages;
  DenseUpload upload(DenseBytes(k_pages.Views(), kHost), DenseBytes(v_pages.Views(), kHost));
  ASSERT_TRUE(Add(upload, Chunk{v1::Chunk::PART_K, 0, std::string(10, 'a')}).ok());
  ExpectBadField(Add(upload, Chunk{v1::Chunk::PART_K, 11, "a"}), "chunk.offset", "got 11, want 10");
  ExpectBadField(Add(upload, Chunk{v1::Chunk::PART_K, -1, "a"}), "chunk.offset", "got -1");
  ExpectBadField(Add(upload, Chunk{v1::Chunk::PART_K, 10, std::string(kBytes - 9, 'a')}),
                 "chunk.data", "want at most");
  ExpectBadField(Add(upload, Chunk{v1::Chunk::PART_PACKED, 0, "a"}), "chunk.part",
                 "want PART_K or PART_V");
  ExpectBadField(Add(upload, Chunk()), "chunk.part", "got 0");
  ExpectBadField(Add(upload, Chunk{v1::Chunk::PART_V, 0, std::string(kMaxChunkBytes + 1, 'a')}),
                 "chunk.data", "want at most 4194304");
  ExpectBadField(upload.CheckComplete(), "chunk", "got 10 bytes of PART_K, want 672");
}

TEST(DenseBytes, ReadsZeroBeyondAHeadsLength) {
  Pages pages;
  pages.lengths = {7, 0, 5, 7, 7, 1};
  const std::string bytes = ReadAll(DenseBytes(pages.Views(), kHost));
  for (int64_t row = 0; row < kLayers * kHeads; ++row) {
    for (int64_t token = 0; token < kTokens; ++token) {
      const char want = token < pages.lengths[row] ? '\xEE' : '\0';
      const std::string got = bytes.substr((row * kTokens + token) * kRowBytes, kRowBytes);
      EXPECT_EQ(got, std::string(kRowBytes, want)) << row << " " << token;
    }
  }
}

TEST(DenseBytes, WritesATailBehindEachHeadsTokens) {
  Pages pages;
  pages.lengths = {7, 2, 5, 7, 6, 3};
  const DenseBytes tail(pages.Views(), kHost, 2);
  ASSERT_EQ(tail.Size(), kLayers * kHeads * 2 * kRowBytes);
  const std::string data = RandomBytes(tail.Size(), 3);
  ASSERT_TRUE(tail.Write(0, std::as_bytes(std::span(data.data(), data.size()))).ok());
  EXPECT_EQ(ReadAll(tail), data);
  const std::string all = ReadAll(DenseBytes(pages.Views(), kHost));
  for (int64_t row = 0; row < kLayers * kHeads; ++row) {
    const int64_t first = row * kTokens + pages.lengths[row] - 2;
    EXPECT_EQ(all.substr(first * kRowBytes, 2 * kRowBytes),
              data.substr(row * 2 * kRowBytes, 2 * kRowBytes));
    if (pages.lengths[row] > 2) {
      EXPECT_EQ(all.substr((first - 1) * kRowBytes, kRowBytes), std::string(kRowBytes, '\xEE'));
    }
  }
}

TEST(CopyTokens, CopiesWhatEachHeadHolds) {
  Pages from, to;
  from.lengths = {7, 0, 5, 7, 7, 1};
  const std::string data = RandomBytes(kBytes, 4);
  std::vector<int32_t> lengths;
  lengths.swap(from.lengths);
  ASSERT_TRUE(DenseBytes(from.Views(), kHost)
                  .Write(0, std::as_bytes(std::span(data.data(), data.size())))
                  .ok());
  lengths.swap(from.lengths);
  CopyTokens(from.Views(), to.Views());
  const std::string all = ReadAll(DenseBytes(to.Views(), kHost));
  for (int64_t row = 0; row < kLayers * kHeads; ++row) {
    const int64_t held = from.lengths[row] * kRowBytes;
    const int64_t first = row * kTokens * kRowBytes;
    EXPECT_EQ(all.substr(first, held), data.substr(first, held));
    EXPECT_EQ(all.substr(first + held, kTokens * kRowBytes - held),
              std::string(kTokens * kRowBytes - held, '\xEE'));
  }
}

}  // namespace
}  // namespace kvern::rpc
