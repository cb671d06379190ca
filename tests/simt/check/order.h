// Which accesses happen before which. Threads of a block are ordered by its barriers, lanes of a
// warp also by __syncwarp; shuffles and votes order no memory, and nothing orders blocks of one
// grid.
#ifndef KVERN_TESTS_SIMT_CHECK_ORDER_H_
#define KVERN_TESTS_SIMT_CHECK_ORDER_H_

#include "simt/check/shadow.h"

namespace simt::check {

enum class Space { kShared, kDevice };

// The mark of an access by the running thread.
Mark MarkNow(const void* pc, bool atomic);

// Whether `before`, made earlier by the emulator's clock, is ordered before `now` on a GPU too.
bool Ordered(const Mark& before, const Mark& now, Space space);

}  // namespace simt::check

#endif  // KVERN_TESTS_SIMT_CHECK_ORDER_H_
