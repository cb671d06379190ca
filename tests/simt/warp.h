// What a meeting of lanes gives each of them.
#ifndef KVERN_TESTS_SIMT_WARP_H_
#define KVERN_TESTS_SIMT_WARP_H_

#include <cstdint>

#include "simt/machine.h"

namespace simt {

// Sets `result` of the participants from their calls, which are checked to agree with that of
// `first`, one of them. Fails the grid if they do not, or if a shuffle reads another lane.
void ResolveWarp(Thread* lanes, uint32_t participants, int first);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_WARP_H_
