// Test keys and values, and scores, in memory of a backend, where its ops reach them in place.
#ifndef KVERN_TESTS_SUPPORT_DEVICE_KV_H_
#define KVERN_TESTS_SUPPORT_DEVICE_KV_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/status_macros.h"
#include "tests/support/host_kv.h"

namespace kvern::support {

// A copy of `host` with its blocks, strides and padding. Dies before the backend; block tables and
// lengths stay those of `host`.
class DeviceKv {
 public:
  DeviceKv(Backend& backend, HostKv& host)
      : memory_(backend.Allocate(static_cast<int64_t>(host.memory().size())).value()),
        refs_(host.refs().begin(), host.refs().end()) {
    KVERN_CHECK(backend.CopyIn(host.memory(), memory_.data()).ok());
    for (KvRef& ref : refs_) ref.base = memory_.data() + (ref.base - host.memory().data());
  }
  LayerRefs refs() const { return refs_; }

 private:
  Buffer memory_;
  std::vector<KvRef> refs_;
};

// Scores [layers, kv_heads, tokens] in every second float, each byte 0xCD until written. Dies
// before the backend.
class DeviceScores {
 public:
  DeviceScores(Backend& backend, int64_t layers, int64_t kv_heads, int64_t tokens)
      : bytes_(layers * kv_heads * tokens * kStride * sizeof(float), std::byte{0xCD}),
        memory_(backend.Allocate(std::max<int64_t>(1, std::ssize(bytes_))).value()),
        view_(DenseView(reinterpret_cast<float*>(memory_.data()), layers, kv_heads,
                        tokens * kStride)) {
    view_.shape[2] = tokens;
    view_.stride[2] = kStride;
    KVERN_CHECK(backend.CopyIn(bytes_, memory_.data()).ok());
  }
  ScoreView view() const { return view_; }
  // All bytes, those between the scores too.
  absl::StatusOr<std::vector<std::byte>> Read(Backend& backend) const {
    std::vector<std::byte> bytes(bytes_.size());
    KVERN_RETURN_IF_ERROR(backend.CopyOut(memory_.data(), bytes));
    return bytes;
  }

 private:
  static constexpr int64_t kStride = 2;

  std::vector<std::byte> bytes_;
  Buffer memory_;
  ScoreView view_;
};

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_DEVICE_KV_H_
