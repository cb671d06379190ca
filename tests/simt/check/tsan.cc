// The functions that -fsanitize=thread makes kernel code call before every load and store. The
// compiler's own library is not linked.
#include <cstdint>

#include "simt/hooks.h"
#include "simt/machine.h"

namespace {

enum class Alignment { kOfSize, kAny };

void Note(const simt::Access& access, Alignment alignment, const void* pc) {
  if (!simt::InKernel()) return;
  if (alignment == Alignment::kOfSize &&
      reinterpret_cast<uintptr_t>(access.address) % access.bytes != 0) {
    simt::FailAt(simt::Fault::kMisaligned, static_cast<const char*>(pc) - 1,
                 "an access is not aligned to its size");
  }
  simt::NoteAccess(access, pc);
}

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define SIMT_TSAN_ACCESS(name, bytes, write, alignment)                           \
  void name(void* address) {                                                      \
    Note({address, bytes, write, false}, alignment, __builtin_return_address(0)); \
  }
#define SIMT_TSAN_SIZE(bytes)                                                     \
  SIMT_TSAN_ACCESS(__tsan_read##bytes, bytes, false, Alignment::kOfSize)          \
  SIMT_TSAN_ACCESS(__tsan_write##bytes, bytes, true, Alignment::kOfSize)          \
  SIMT_TSAN_ACCESS(__tsan_volatile_read##bytes, bytes, false, Alignment::kOfSize) \
  SIMT_TSAN_ACCESS(__tsan_volatile_write##bytes, bytes, true, Alignment::kOfSize) \
  SIMT_TSAN_ACCESS(__tsan_unaligned_read##bytes, bytes, false, Alignment::kAny)   \
  SIMT_TSAN_ACCESS(__tsan_unaligned_write##bytes, bytes, true, Alignment::kAny)
SIMT_TSAN_SIZE(1)
SIMT_TSAN_SIZE(2)
SIMT_TSAN_SIZE(4)
SIMT_TSAN_SIZE(8)
SIMT_TSAN_SIZE(16)

void __tsan_read_range(void* address, unsigned long bytes) {
  Note({address, static_cast<uint32_t>(bytes), false, false}, Alignment::kAny,
       __builtin_return_address(0));
}
void __tsan_write_range(void* address, unsigned long bytes) {
  Note({address, static_cast<uint32_t>(bytes), true, false}, Alignment::kAny,
       __builtin_return_address(0));
}

// Host code in the same files (reference counts of the standard library) may want these.
#define SIMT_TSAN_UPDATE(T, bits, name, builtin)                      \
  T __tsan_atomic##bits##_##name(volatile T* address, T value, int) { \
    return builtin(address, value, __ATOMIC_SEQ_CST);                 \
  }
#define SIMT_TSAN_ATOMICS(T, bits)                                                                \
  T __tsan_atomic##bits##_load(const volatile T* address, int) {                                  \
    return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                            \
  }                                                                                               \
  void __tsan_atomic##bits##_store(volatile T* address, T value, int) {                           \
    __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                           \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* address, T* expected, T value,    \
                                                    int, int) {                                   \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST,         \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* address, T* expected, T value, int, \
                                                  int) {                                          \
    return __atomic_compare_exchange_n(address, expected, value, false, __ATOMIC_SEQ_CST,         \
                                       __ATOMIC_SEQ_CST);                                         \
  }                                                                                               \
  SIMT_TSAN_UPDATE(T, bits, exchange, __atomic_exchange_n)                                        \
  SIMT_TSAN_UPDATE(T, bits, fetch_add, __atomic_fetch_add)                                        \
  SIMT_TSAN_UPDATE(T, bits, fetch_sub, __atomic_fetch_sub)                                        \
  SIMT_TSAN_UPDATE(T, bits, fetch_and, __atomic_fetch_and)                                        \
  SIMT_TSAN_UPDATE(T, bits, fetch_or, __atomic_fetch_or)                                          \
  SIMT_TSAN_UPDATE(T, bits, fetch_xor, __atomic_fetch_xor)
SIMT_TSAN_ATOMICS(uint8_t, 8)
SIMT_TSAN_ATOMICS(uint16_t, 16)
SIMT_TSAN_ATOMICS(uint32_t, 32)
SIMT_TSAN_ATOMICS(uint64_t, 64)

void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
