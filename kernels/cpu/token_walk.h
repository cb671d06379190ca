// Addresses of tokens that ascend: divides only where a block ends.
#ifndef KVERN_KERNELS_CPU_TOKEN_WALK_H_
#define KVERN_KERNELS_CPU_TOKEN_WALK_H_

#include <cstddef>
#include <cstdint>

#include "kernels/base/kv_ref.h"

namespace kvern::cpu {

// Borrows `ref`.
class TokenWalk {
 public:
  TokenWalk(const KvRef& ref, int64_t head) : ref_(ref), head_(head) {}

  // KvRef::Address, for any token; quick where it shares a block with the last one asked for.
  std::byte* Address(int64_t token) {
    if (token < first_ || token >= end_) {
      first_ = token - token % ref_.block_tokens;
      end_ = first_ + ref_.block_tokens;
      at_ = ref_.Address(head_, first_);
    }
    return at_ + (token - first_) * ref_.strides.token;
  }

 private:
  const KvRef& ref_;
  const int64_t head_;
  int64_t first_ = 0;  // of the block, whose last token is before `end_`
  int64_t end_ = 0;
  std::byte* at_ = nullptr;
};

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_TOKEN_WALK_H_
