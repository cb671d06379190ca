// The keys or the values of one layer of one sequence, wherever they lie (ruling 14).
#ifndef KVERN_KERNELS_BASE_KV_REF_H_
#define KVERN_KERNELS_BASE_KV_REF_H_

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"

namespace kvern {

// Byte strides; free on every axis, head_dim included, so that NHD, HND, packed K|V and
// column-major key tiles are all one description. Each is a multiple of the element size.
struct KvStrides {
  int64_t block = 0;
  int64_t head = 0;
  int64_t token = 0;
  int64_t dim = 0;
};

// Non-owning. Logical axes [kv_heads, tokens, head_dim]; token t lives in block t / block_tokens at
// slot t % block_tokens. The addresses were validated when the view was made: kernels trust it.
struct KvRef {
  DType dtype = DType::kBF16;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int64_t tokens = 0;  // physical tokens of the longest head
  int32_t block_tokens = 1;
  std::byte* base = nullptr;  // inputs are never written through it
  KvStrides strides;
  const uint32_t* block_ids = nullptr;  // [ceil(tokens / block_tokens)]; null: block b is id b
  const int32_t* lengths = nullptr;     // [kv_heads] tokens held per head; null: all hold `tokens`

  int64_t Length(int64_t head) const { return lengths == nullptr ? tokens : lengths[head]; }
  std::byte* Address(int64_t head, int64_t token) const {
    const int64_t block = token / block_tokens;
    const int64_t id = block_ids == nullptr ? block : int64_t{block_ids[block]};
    return base + id * strides.block + head * strides.head +
           (token - block * block_tokens) * strides.token;
  }
  bool HasContiguousRows() const { return strides.dim == SizeOf(dtype); }
};

// Dense [kv_heads, tokens, head_dim] memory as one block.
inline KvRef DenseKvRef(DType dtype, void* base, int64_t kv_heads, int64_t tokens,
                        int64_t head_dim) {
  KvRef ref;
  ref.dtype = dtype;
  ref.kv_heads = static_cast<int32_t>(kv_heads);
  ref.head_dim = static_cast<int32_t>(head_dim);
  ref.tokens = tokens;
  ref.block_tokens = tokens > 0 ? static_cast<int32_t>(tokens) : 1;
  ref.base = static_cast<std::byte*>(base);
  const int64_t size = SizeOf(dtype);
  ref.strides = {0, tokens * head_dim * size, head_dim * size, size};
  return ref;
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_KV_REF_H_
