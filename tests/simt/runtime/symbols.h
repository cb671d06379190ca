// Names of kernels from the symbol table of the binary that they are in: as static functions they
// have none at run time.
#ifndef KVERN_TESTS_SIMT_RUNTIME_SYMBOLS_H_
#define KVERN_TESTS_SIMT_RUNTIME_SYMBOLS_H_

#include <string>

namespace simt::runtime {

// "kvern::cuda::RowNormsKernel<float>": no result type, no parameters. "?" if not known.
std::string KernelName(const void* kernel);

}  // namespace simt::runtime

#endif  // KVERN_TESTS_SIMT_RUNTIME_SYMBOLS_H_
