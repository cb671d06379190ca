// Physical device memory that is mapped by hand (cuMemCreate and the calls around it).
#ifndef KVERN_TESTS_SIMT_RUNTIME_VMM_H_
#define KVERN_TESTS_SIMT_RUNTIME_VMM_H_

#include <cstddef>

namespace simt::runtime {

// Made by this process with cuMemCreate and not yet given back. Only inside Runtime::Call.
size_t MappableBytesUsed();

}  // namespace simt::runtime

#endif  // KVERN_TESTS_SIMT_RUNTIME_VMM_H_
