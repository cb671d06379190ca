// Copies and fills: checked when called, done when the stream gets there.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "simt/memory.h"
#include "simt/runtime/host_memory.h"
#include "simt/runtime/runtime.h"

namespace {

using simt::runtime::Runtime;
using simt::runtime::StreamRef;

// `rows` runs of `width` bytes, `pitch` bytes apart.
struct Rows {
  std::byte* begin = nullptr;
  size_t pitch = 0;
  size_t width = 0;
  size_t rows = 0;

  std::byte* Row(size_t row) const { return begin + row * pitch; }
  size_t Span() const { return rows == 0 || width == 0 ? 0 : (rows - 1) * pitch + width; }
};

enum class Side { kDevice, kPinned, kPageable };

Side SideOf(const Rows& rows) {
  if (simt::runtime::IsPinned(rows.begin, rows.Span())) return Side::kPinned;
  return simt::IsDevice(rows.begin) ? Side::kDevice : Side::kPageable;
}

bool InsideOneAllocation(const Rows& rows) {
  const auto allocation = simt::FindAllocation(rows.begin);
  if (!allocation) return false;
  const size_t offset = static_cast<size_t>(rows.begin - allocation->begin);
  return rows.Span() <= allocation->bytes - offset;
}

struct Copy {
  Rows to;
  Rows from;
  bool to_device = false;
  bool from_device = false;
  std::shared_ptr<std::byte[]> staged;  // what pageable memory held at the call
};

cudaMemcpyKind KindOf(bool from_device, bool to_device) {
  if (from_device) return to_device ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost;
  return to_device ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost;
}

// Memory freed since the call (by cuMemUnmap, which does not wait) is an illegal address.
cudaError_t Lost(const char* what, const void* address) {
  std::fprintf(stderr, "simt: a copy ran after its %s at %p was unmapped\n", what, address);
  return cudaErrorIllegalAddress;
}

cudaError_t Run(const Copy& copy) {
  if (copy.to_device && !InsideOneAllocation(copy.to)) return Lost("target", copy.to.begin);
  if (copy.from_device && !InsideOneAllocation(copy.from)) return Lost("source", copy.from.begin);
  const simt::DeviceAccess access;
  for (size_t row = 0; row < copy.to.rows; ++row) {
    std::memmove(copy.to.Row(row), copy.from.Row(row), copy.to.width);
    if (copy.to_device && copy.from_device) {
      simt::NoteDeviceCopy(copy.to.Row(row), copy.from.Row(row), copy.to.width);
    } else if (copy.to_device) {
      simt::NoteHostWrite(copy.to.Row(row), copy.to.width);
    }
  }
  return cudaSuccess;
}

void Stage(Copy* copy) {
  Rows& from = copy->from;
  copy->staged.reset(new std::byte[from.width * from.rows]);
  for (size_t row = 0; row < from.rows; ++row) {
    std::memcpy(copy->staged.get() + row * from.width, from.Row(row), from.width);
  }
  from.begin = copy->staged.get();
  from.pitch = from.width;
}

cudaError_t Push(Runtime& runtime, Copy copy, cudaMemcpyKind kind, cudaStream_t handle) {
  const StreamRef stream = runtime.streams().Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (copy.from.Span() == 0) return cudaSuccess;
  if (copy.to.begin == nullptr || copy.from.begin == nullptr) return cudaErrorInvalidValue;
  const Side from = SideOf(copy.from);
  const Side to = SideOf(copy.to);
  copy.from_device = from == Side::kDevice;
  copy.to_device = to == Side::kDevice;
  if (kind != cudaMemcpyDefault && kind != KindOf(copy.from_device, copy.to_device)) {
    return cudaErrorInvalidValue;
  }
  if (copy.from_device && !InsideOneAllocation(copy.from)) return cudaErrorInvalidValue;
  if (copy.to_device && !InsideOneAllocation(copy.to)) return cudaErrorInvalidValue;
  if (from == Side::kPageable && to == Side::kDevice) Stage(&copy);
  const auto mark = runtime.streams().Push(stream, [copy = std::move(copy)] { return Run(copy); });
  // Host to host is synchronous in the real runtime too.
  if (from != Side::kDevice && to != Side::kDevice) runtime.WaitFor(mark);
  return cudaSuccess;
}

Copy Flat(void* to, const void* from, size_t bytes) {
  Copy copy;
  copy.to = {static_cast<std::byte*>(to), bytes, bytes, 1};
  copy.from = {static_cast<std::byte*>(const_cast<void*>(from)), bytes, bytes, 1};
  return copy;
}

cudaError_t PushFill(Runtime& runtime, const Rows& rows, int value, cudaStream_t handle) {
  const StreamRef stream = runtime.streams().Find(handle);
  if (stream == nullptr) return cudaErrorInvalidResourceHandle;
  if (rows.Span() == 0) return cudaSuccess;
  if (SideOf(rows) == Side::kPageable) return cudaErrorInvalidValue;
  const bool device = SideOf(rows) == Side::kDevice;
  if (device && !InsideOneAllocation(rows)) return cudaErrorInvalidValue;
  runtime.streams().Push(stream, [rows, value, device] {
    if (device && !InsideOneAllocation(rows)) return Lost("target", rows.begin);
    const simt::DeviceAccess access;
    std::memset(rows.begin, value, rows.width);
    if (device) simt::NoteHostWrite(rows.begin, rows.width);
    return cudaSuccess;
  });
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaMemcpyAsync",
                      [&] { return Push(runtime, Flat(to, from, bytes), kind, stream); });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaMemcpy", [&] {
    const cudaError_t error = Push(runtime, Flat(to, from, bytes), kind, nullptr);
    runtime.WaitFor(runtime.streams().Find(nullptr)->tail);
    return error;
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaMemcpy2DAsync", [&]() -> cudaError_t {
    if (width > to_pitch || width > from_pitch) return cudaErrorInvalidPitchValue;
    Copy copy;
    copy.to = {static_cast<std::byte*>(to), to_pitch, width, height};
    copy.from = {static_cast<std::byte*>(const_cast<void*>(from)), from_pitch, width, height};
    return Push(runtime, copy, kind, stream);
  });
}

cudaError_t cudaMemsetAsync(void* device, int value, size_t bytes, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  const Rows rows{static_cast<std::byte*>(device), bytes, bytes, 1};
  return runtime.Call("cudaMemsetAsync", [&] { return PushFill(runtime, rows, value, stream); });
}

cudaError_t cudaMemset(void* device, int value, size_t bytes) {
  return cudaMemsetAsync(device, value, bytes, nullptr);  // asynchronous to the host, as documented
}
