// The memory of an op: uploads, scratch and answers. Everything is enqueued on one stream, so that
// scratch may be handed on while kernels still read it: what writes it next comes after them.
#include "kernels/cuda/op.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace kvern::cuda {
namespace {

constexpr int64_t kPageBytes = 256 << 10;
constexpr int64_t kSmallBytes = 64 << 10;
constexpr int64_t kPageAlign = 64;

}  // namespace

Op::Op(DeviceContext& device, const char* name)
    : device_(device), name_(name), status_(device.Enter()) {}

Op::~Op() {
  device_.staging().Abandon();
  for (const auto& [data, bytes] : scratch_) device_.arena().Free(data, bytes);
}

void* Op::ScratchBytes(int64_t bytes) {
  if (!status_.ok()) return nullptr;
  std::byte* const data = device_.arena().Allocate(bytes, Arena::End::kHigh);
  if (data == nullptr) {
    status_ = absl::ResourceExhaustedError(
        absl::StrCat("scratch: ", name_, " got no device memory for ", bytes, " bytes, ",
                     device_.arena().FreeBytes(), " of ", device_.arena().bytes(), " are free"));
    return nullptr;
  }
  scratch_.emplace_back(data, bytes);
  return data;
}

void Op::Fill(std::byte* device, Units units, Staging::Pack pack) {
  if (status_.ok()) status_ = device_.staging().Upload(device, units, pack, Ask::kBoundCheck);
}

void Op::FlushPage() {
  Fill(page_device_, {.bytes = 1, .count = static_cast<int64_t>(page_.size())},
       [&](int64_t first, int64_t count, std::byte* to) {
         std::memcpy(to, page_.data() + first, static_cast<size_t>(count));
       });
  page_.clear();
  page_device_ = nullptr;
}

const std::byte* Op::UploadUnits(Units units, Staging::Pack pack) {
  const int64_t bytes = units.bytes * units.count;
  if (bytes == 0) return nullptr;
  if (bytes > kSmallBytes) {
    auto* const device = static_cast<std::byte*>(ScratchBytes(bytes));
    Fill(device, units, pack);
    return device;
  }
  if (page_device_ != nullptr && static_cast<int64_t>(page_.size()) + bytes > kPageBytes) {
    FlushPage();
  }
  if (page_device_ == nullptr) page_device_ = static_cast<std::byte*>(ScratchBytes(kPageBytes));
  if (page_device_ == nullptr) return nullptr;
  const size_t offset = page_.size();
  page_.reserve(kPageBytes);
  page_.resize(static_cast<size_t>((offset + bytes + kPageAlign - 1) / kPageAlign * kPageAlign));
  pack(0, units.count, page_.data() + offset);
  return page_device_ + offset;
}

const void* Op::UploadBytes(std::span<const std::byte> host) {
  return UploadUnits({.bytes = 1, .count = static_cast<int64_t>(host.size())},
                     [&](int64_t first, int64_t count, std::byte* to) {
                       std::memcpy(to, host.data() + first, static_cast<size_t>(count));
                     });
}

const void* Op::UploadStrided(const StridedBytes& view) {
  return UploadUnits(
      {.bytes = view.element_bytes(), .count = view.Elements()},
      [&](int64_t first, int64_t count, std::byte* to) { view.Pack(first, count, to); });
}

void* Op::ResultBytes(std::span<std::byte> host) {
  if (host.empty()) return nullptr;
  auto* const device = static_cast<std::byte*>(ScratchBytes(static_cast<int64_t>(host.size())));
  answers_.push_back({device,
                      {.bytes = 1, .count = static_cast<int64_t>(host.size())},
                      [host](int64_t first, int64_t count, const std::byte* from) {
                        std::memcpy(host.data() + first, from, static_cast<size_t>(count));
                      }});
  return device;
}

std::byte* Op::InOut(std::span<std::byte> bytes) {
  if (bytes.empty()) return nullptr;
  if (device_.Reaches(bytes.data())) return bytes.data();
  // Keys and values of one sequence write into the same bytes: two copies would undo each other.
  const auto [known, added] = in_out_.try_emplace(bytes.data());
  if (!added) return known->second;
  auto* const device = static_cast<std::byte*>(ResultBytes(bytes));
  known->second = device;
  Fill(device, answers_.back().units, [&](int64_t first, int64_t count, std::byte* to) {
    std::memcpy(to, bytes.data() + first, static_cast<size_t>(count));
  });
  return device;
}

const std::byte* Op::In(std::span<const std::byte> bytes) {
  if (bytes.empty()) return nullptr;
  if (device_.Reaches(bytes.data())) return bytes.data();
  const auto [known, added] = in_.try_emplace(bytes.data());
  if (added) known->second = static_cast<const std::byte*>(UploadBytes(bytes));
  return known->second;
}

void Op::Clear(void* device, int64_t bytes) {
  if (!status_.ok() || bytes == 0) return;
  status_ = device_.Check(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes), device_.stream()),
                          name_);
}

absl::Status Op::Ready() {
  if (page_device_ != nullptr) FlushPage();
  if (status_.ok()) status_ = device_.AskBound();
  if (status_.ok()) {
    status_ = device_.clock().Start();
    timed_ = status_.ok();
  }
  return status_;
}

void Op::Launched(cudaError_t error) {
  if (status_.ok()) status_ = device_.Check(error, name_);
}

absl::Status Op::End() {
  if (status_.ok() && timed_) status_ = device_.clock().Stop();
  timed_ = false;
  if (!status_.ok() || answers_.empty()) return status_;
  // The last moment at which host memory is as it was.
  status_ = device_.Drain(Ask::kBoundCheck, name_);
  for (Answer& answer : answers_) {
    if (!status_.ok()) return status_;
    status_ = device_.staging().Download(answer.device, answer.units, std::move(answer.unpack),
                                         Ask::kHurry);
  }
  if (status_.ok()) status_ = device_.staging().Finish(Ask::kHurry);
  return status_;
}

}  // namespace kvern::cuda
