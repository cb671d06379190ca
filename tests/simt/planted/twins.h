// Launches a kernel template that has a twin with a bug and one without.
#ifndef KVERN_TESTS_SIMT_PLANTED_TWINS_H_
#define KVERN_TESTS_SIMT_PLANTED_TWINS_H_

#include "simt/launch.h"
#include "simt/planted/planted.h"

namespace simt::planted {

struct Pair {
  void (*bad)(Buffers);
  void (*good)(Buffers);
};
struct Size {
  int blocks = 1;
  int threads = 256;
  int shared_bytes = 0;
};

inline void RunTwin(Twin twin, const Pair& pair, const Size& size, const Buffers& buffers) {
  RunKernel(twin == Twin::kGood ? pair.good : pair.bad, size.blocks, size.threads,
            size.shared_bytes, buffers);
}

}  // namespace simt::planted

#endif  // KVERN_TESTS_SIMT_PLANTED_TWINS_H_
