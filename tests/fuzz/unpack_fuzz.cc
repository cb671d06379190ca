// Any table over any bytes: Unpack refuses it or decodes it, and never reads or writes elsewhere.
//
// Input: [layers, kv_heads, head_dim / 8, dtype, bands, max_kept, table rows, kind of mean] u8
// each, then a count u8 per (layer, kv_head), then rows of 64 bytes, then mean keys, then block
// bytes.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"

namespace kvern::pipeline {
namespace {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  size_t left() const { return left_; }
  // Zeros once the input has ended.
  void Take(void* out, size_t size) {
    const size_t here = std::min(size, left_);
    if (size > 0) std::memset(out, 0, size);  // memset wants memory even for no bytes
    if (here > 0) std::memcpy(out, data_, here);
    data_ += here;
    left_ -= here;
  }
  int64_t Number(int64_t below) {
    uint8_t byte;
    Take(&byte, 1);
    return byte % below;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

struct Memory {
  std::vector<std::byte> bytes;
  std::vector<KvRef> refs;
};

Memory Rows(const ModelSpec& model, DType dtype, int64_t tokens) {
  Memory memory;
  const int64_t layer_bytes = model.kv_heads * tokens * model.head_dim * SizeOf(dtype);
  memory.bytes.resize(model.num_layers * layer_bytes);
  for (int32_t layer = 0; layer < model.num_layers; ++layer) {
    memory.refs.push_back(DenseKvRef(dtype, memory.bytes.data() + layer * layer_bytes,
                                     model.kv_heads, tokens, model.head_dim));
  }
  return memory;
}

// Rows of ascending positions by their counts; a count beyond the row makes them odd.
std::vector<int32_t> Positions(const ModelSpec& model, int64_t max_kept, Bytes* input) {
  std::vector<int32_t> positions;
  for (int64_t row = 0; row < int64_t{model.num_layers} * model.kv_heads; ++row) {
    const int64_t count = input->Number(256);
    for (int64_t slot = 0; slot < max_kept; ++slot) {
      positions.push_back(slot < count ? static_cast<int32_t>(slot * (row + 1)) : -1);
    }
    if (count > max_kept && !positions.empty()) positions.back() = static_cast<int32_t>(-count);
  }
  return positions;
}

void Run(Bytes input) {
  ModelSpec model;
  model.num_layers = static_cast<int32_t>(input.Number(4));
  model.kv_heads = model.q_heads = static_cast<int32_t>(input.Number(4));
  model.head_dim = static_cast<int32_t>(8 * input.Number(18));
  PackedKv packed;
  packed.dtype = static_cast<DType>(input.Number(3));
  const int64_t bands = input.Number(80);
  for (int64_t band = 0; band < bands; ++band) {
    model.rope.inv_freq.push_back(1.0f / static_cast<float>(1 + band));
  }
  const int64_t max_kept = input.Number(200);
  packed.table.resize(input.Number(64));
  const int64_t kind_of_mean = input.Number(3);
  const std::vector<int32_t> positions = Positions(model, max_kept, &input);
  input.Take(packed.table.data(), packed.table.size() * sizeof(PackedRow));
  const int64_t values = int64_t{model.num_layers} * model.kv_heads * model.head_dim;
  packed.mean_key.resize(kind_of_mean == 0 ? 0 : values + kind_of_mean - 1);
  input.Take(packed.mean_key.data(), packed.mean_key.size() * sizeof(Float16));
  packed.blocks.resize(input.left());
  input.Take(packed.blocks.data(), packed.blocks.size());

  const Memory keys = Rows(model, packed.dtype, max_kept);
  const Memory decoded_values = Rows(model, packed.dtype, max_kept);
  static Backend& backend = *MakeBackend({.name = "ref"}).value().release();
  const absl::Status status =
      Unpack(backend, model, packed, positions, {keys.refs, decoded_values.refs});
  KVERN_CHECK(status.ok() || status.code() == absl::StatusCode::kInvalidArgument ||
              status.code() == absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace kvern::pipeline

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvern::pipeline::Run(kvern::pipeline::Bytes(data, size));
  return 0;
}
