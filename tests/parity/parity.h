// Holds every backend to the bits of ref: all instruction sets, one and two threads, fenced output.
#ifndef KVERN_TESTS_PARITY_PARITY_H_
#define KVERN_TESTS_PARITY_PARITY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/backends.h"
#include "kernels/base/keep_list.h"
#include "tests/support/guarded_buffer.h"

namespace kvern::support {

// The cuda backend of the twin, opened once.
inline Backend& CudaBackend() {
  static Backend& backend =  // emulated, it may be slow: that is no hang
      *MakeBackend({.name = "cuda", .scratch_bytes = int64_t{64} << 20, .hang_seconds = 300})
           .value()
           .release();
  return backend;
}

// Runs `run` on ref first, then on every cpu variant, or on cuda in the twin that has it, with a
// trace that names the variant.
inline void ForEachBackend(absl::FunctionRef<void(Backend&)> run) {
  std::vector<BackendOptions> variants = {{.name = "ref"}};
  const bool cuda = BackendNames().back() == "cuda";
  for (const std::string& set : cuda ? std::vector<std::string>() : InstructionSets()) {
    for (const int threads : {1, 2}) {
      variants.push_back({.name = "cpu", .instruction_set = set, .threads = threads});
    }
  }
  for (const BackendOptions& options : variants) {
    SCOPED_TRACE(
        absl::StrCat(options.name, "/", options.instruction_set, " threads=", options.threads));
    absl::StatusOr<std::unique_ptr<Backend>> backend = MakeBackend(options);
    ASSERT_TRUE(backend.ok()) << backend.status().ToString();
    run(**backend);
  }
  if (!cuda) return;
  SCOPED_TRACE("cuda");
  run(CudaBackend());
  CudaBackend().Bind(nullptr);  // a check dies with its test
}

// `op` fills (or changes) memory that starts as `initial`; every backend must leave ref's bytes and
// no others. Returns ref's.
inline std::vector<std::byte> ExpectParity(
    std::span<const std::byte> initial,
    absl::FunctionRef<absl::Status(Backend&, std::span<std::byte>)> op) {
  std::vector<std::byte> want;
  bool have_ref = false;
  ForEachBackend([&](Backend& backend) {
    GuardedBuffer<std::byte> output(static_cast<int64_t>(initial.size()));
    std::copy(initial.begin(), initial.end(), output.data());
    const absl::Status status = op(backend, output.span());
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_TRUE(output.Intact()) << "write past the output";
    const std::span<const std::byte> got = output.bytes();
    if (!have_ref) {
      want.assign(got.begin(), got.end());
      have_ref = true;
      return;
    }
    const auto [difference, unused] = std::mismatch(want.begin(), want.end(), got.begin());
    EXPECT_TRUE(difference == want.end())
        << "byte " << difference - want.begin() << " of " << want.size() << " differs from ref";
  });
  return want;
}

// As above for scores [layers, kv_heads, tokens] = `initial`'s shape; the contents of `initial` go
// in, which only in-place ops read. Returns ref's scores.
inline std::vector<float> ExpectScoreParity(
    ConstScoreView initial, absl::FunctionRef<absl::Status(Backend&, ScoreView)> op) {
  std::vector<float> want(initial.Size());
  bool have_ref = false;
  ForEachBackend([&](Backend& backend) {
    GuardedBuffer<float> output(initial.Size());
    if (initial.data != nullptr) std::copy_n(initial.data, initial.Size(), output.data());
    const absl::Status status =
        op(backend, DenseView(output.data(), initial.shape[0], initial.shape[1], initial.shape[2]));
    ASSERT_TRUE(status.ok()) << status.ToString();
    EXPECT_TRUE(output.Intact()) << "write past the output";
    if (!have_ref) {
      std::copy_n(output.data(), output.size(), want.begin());
      have_ref = true;
      return;
    }
    for (int64_t i = 0; i < output.size(); ++i) {
      if (std::memcmp(&want[i], output.data() + i, sizeof(float)) == 0) continue;
      ADD_FAILURE() << "score " << i << " of " << output.size() << ": got "
                    << absl::StrCat(output.data()[i]) << ", ref " << absl::StrCat(want[i]);
      return;
    }
  });
  return want;
}

// For ops that only write scores.
inline std::vector<float> ExpectScoreParity(
    int64_t layers, int64_t kv_heads, int64_t tokens,
    absl::FunctionRef<absl::Status(Backend&, ScoreView)> op) {
  return ExpectScoreParity(
      ConstScoreView(DenseView(static_cast<const float*>(nullptr), layers, kv_heads, tokens)), op);
}

// Selectors: `counts` [layers, kv_heads] sizes the rows. Returns ref's choice.
inline KeepList ExpectKeepParity(TensorView<const int32_t, 2> counts,
                                 absl::FunctionRef<absl::Status(Backend&, KeepList*)> op) {
  KeepList want;
  bool have_ref = false;
  ForEachBackend([&](Backend& backend) {
    KeepList keep = KeepList::WithCounts(counts);
    const absl::Status status = op(backend, &keep);
    ASSERT_TRUE(status.ok()) << status.ToString();
    if (!have_ref) {
      want = std::move(keep);
      have_ref = true;
      return;
    }
    EXPECT_EQ(keep.offsets, want.offsets);
    EXPECT_EQ(keep.tokens, want.tokens);
  });
  return want;
}

// Fires from the first question on.
class AlwaysCancelled final : public StopCheck {
 public:
  absl::Status Check() const override { return absl::CancelledError("the caller left"); }
};

}  // namespace kvern::support

#endif  // KVERN_TESTS_PARITY_PARITY_H_
