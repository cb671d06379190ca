// Integer atomics under their CUDA names. Threads of the emulator never interrupt each other, so
// they are plain updates; the check build hears of them. There are none for floating point: their
// results would depend on the order.
#ifndef KVERN_TESTS_SIMT_ATOMICS_H_
#define KVERN_TESTS_SIMT_ATOMICS_H_

#include <cstdint>

#include "simt/hooks.h"

// The check build names a line by the return address: there an atomic is a call of its own.
#if defined(KVERN_SIMT_CHECK)
#define SIMT_ATOMIC SIMT_SHIM __attribute__((noinline))
#define SIMT_NOTE_ATOMIC(address) \
  simt::NoteAccess({address, sizeof(*(address)), true, true}, SIMT_CALLER)
#else
#define SIMT_ATOMIC SIMT_SHIM
#define SIMT_NOTE_ATOMIC(address) static_cast<void>(0)
#endif

// T name(T*, T): `next` says what comes after `old` and `value`.
#define SIMT_ATOMIC_UPDATE(name, T, next)                    \
  SIMT_ATOMIC T name(T* address, T value) {                  \
    if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) {  \
      simt::FailMisaligned(address, sizeof(T), SIMT_CALLER); \
    }                                                        \
    SIMT_NOTE_ATOMIC(address);                               \
    const T old = *address;                                  \
    *address = static_cast<T>(next);                         \
    return old;                                              \
  }
// Signed sums wrap around, as on a GPU.
#define SIMT_ATOMICS(T, U)                                                      \
  SIMT_ATOMIC_UPDATE(atomicAdd, T, static_cast<U>(old) + static_cast<U>(value)) \
  SIMT_ATOMIC_UPDATE(atomicMin, T, value < old ? value : old)                   \
  SIMT_ATOMIC_UPDATE(atomicMax, T, value > old ? value : old)                   \
  SIMT_ATOMIC_UPDATE(atomicAnd, T, old& value)                                  \
  SIMT_ATOMIC_UPDATE(atomicOr, T, old | value)                                  \
  SIMT_ATOMIC_UPDATE(atomicXor, T, old ^ value)                                 \
  SIMT_ATOMIC_UPDATE(atomicExch, T, value)                                      \
  SIMT_ATOMIC T atomicCAS(T* address, T expected, T value) {                    \
    if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) {                     \
      simt::FailMisaligned(address, sizeof(T), SIMT_CALLER);                    \
    }                                                                           \
    SIMT_NOTE_ATOMIC(address);                                                  \
    const T old = *address;                                                     \
    if (old == expected) *address = value;                                      \
    return old;                                                                 \
  }
SIMT_ATOMICS(int, unsigned)
SIMT_ATOMICS(unsigned, unsigned)
SIMT_ATOMICS(unsigned long long, unsigned long long)  // NOLINT(runtime/int): CUDA's signature
SIMT_ATOMIC_UPDATE(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
SIMT_ATOMIC_UPDATE(atomicSub, unsigned, old - value)
#undef SIMT_ATOMICS
#undef SIMT_ATOMIC_UPDATE

#endif  // KVERN_TESTS_SIMT_ATOMICS_H_
