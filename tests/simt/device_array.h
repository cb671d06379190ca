// An array in device memory, for tests.
#ifndef KVERN_TESTS_SIMT_DEVICE_ARRAY_H_
#define KVERN_TESTS_SIMT_DEVICE_ARRAY_H_

#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

#include "simt/memory.h"

namespace simt {

// Owns the memory; its elements are 0xFF bytes until somebody writes them.
template <class T>
class DeviceArray {
 public:
  static_assert(std::is_trivially_copyable_v<T>);

  explicit DeviceArray(size_t count)
      : count_(count), data_(static_cast<T*>(DeviceAlloc(count * sizeof(T)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    const DeviceAccess access;
    std::memcpy(data_, values.data(), count_ * sizeof(T));
    NoteHostWrite(data_, count_ * sizeof(T));
  }
  ~DeviceArray() { DeviceFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> Copy() const {
    const DeviceAccess access;
    return std::vector<T>(data_, data_ + count_);
  }
  // For CheckSchedules.
  std::vector<unsigned char> Bytes() const {
    const DeviceAccess access;
    const auto* bytes = reinterpret_cast<const unsigned char*>(data_);
    return std::vector<unsigned char>(bytes, bytes + count_ * sizeof(T));
  }

 private:
  size_t count_;
  T* data_;
};

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_DEVICE_ARRAY_H_
