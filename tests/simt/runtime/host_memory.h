// Page-locked memory of the host, which copies read and write when they run, not when called.
#ifndef KVERN_TESTS_SIMT_RUNTIME_HOST_MEMORY_H_
#define KVERN_TESTS_SIMT_RUNTIME_HOST_MEMORY_H_

#include <cstddef>

namespace simt::runtime {

// All bytes of [begin, begin + bytes) are page-locked. Only inside Runtime::Call.
bool IsPinned(const void* begin, size_t bytes);

}  // namespace simt::runtime

#endif  // KVERN_TESTS_SIMT_RUNTIME_HOST_MEMORY_H_
