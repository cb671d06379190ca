// Gathers accesses of a block into requests of warps.
#ifndef KVERN_TESTS_SIMT_CHECK_PROFILE_H_
#define KVERN_TESTS_SIMT_CHECK_PROFILE_H_

#include "simt/check/order.h"
#include "simt/hooks.h"

namespace simt::check {

// Only if the configuration asks for a profile.
void AddToProfile(const Access& access, const void* pc, Space space);
// The block has ended: its accesses become counts.
void FoldProfile();
void ForgetSharedWrites();  // access.cc: a block starts

}  // namespace simt::check

#endif  // KVERN_TESTS_SIMT_CHECK_PROFILE_H_
